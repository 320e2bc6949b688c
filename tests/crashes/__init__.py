"""What `test_crashes.py` stands on: work to be interrupted, and the tracer that interrupts it."""
