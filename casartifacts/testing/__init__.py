"""For whoever writes a backend, or what stands above one.

    kit          `checks`: the promises of `casartifacts.protocols`, each as a check by name
    stores       the checks of the eight contracts        abilities    those of a `Backend`
    expect       the words in which the checks are written
    places       `Plan`, `Fault`: a backend that goes wrong as planned
    bodies       `Body`, `Stream`: streams that behave as badly as is allowed

Nothing here needs a test framework. To join the kit:

    import pytest
    from casartifacts.testing import checks

    DEVIATIONS = {"stat_tells_when_it_was_written": "this place keeps no times"}

    @pytest.mark.parametrize("check", checks(backend=True, deviations=DEVIATIONS), ids=str)
    def test_my_backend_keeps_the_contracts(check, tmp_path):
        check(MyBackend(tmp_path))  # fresh and empty for every check
"""

from casartifacts.testing.bodies import Body, ContractBroken, OnlyRead, Stream
from casartifacts.testing.kit import Check, checks
from casartifacts.testing.places import Fault, FaultNeverHit, Kind, NastyPlace, Plan

__all__ = [
    "Body",
    "Check",
    "ContractBroken",
    "Fault",
    "FaultNeverHit",
    "Kind",
    "NastyPlace",
    "OnlyRead",
    "Plan",
    "Stream",
    "checks",
]
