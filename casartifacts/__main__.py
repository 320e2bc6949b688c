"""`python -m casartifacts`: the command line."""

from casartifacts.cli import main

if __name__ == "__main__":
    main()
