"""The conformance kit: the promises of `casartifacts.protocols`, each as a check by name.

Rule 1: a check is called with a fresh, empty store and raises `ContractBroken` with what was
expected and what came. It needs no test framework.
Rule 2: what a store cannot do is declared by the name of the check, with the reason; a declared
check must fail, so that declarations stay true.
Rule 3: no check rests on luck: where order matters, the body that is being written looks around
or waits. Only the two checks `threads_...` race for real, for a moment; where such a check is
declared, either outcome is right.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casartifacts.testing import abilities, stores
from casartifacts.testing.bodies import ContractBroken

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casartifacts.protocols import ArtifactStore

__all__ = ["Check", "checks"]


@dataclass(frozen=True)
class Check:
    """One promise, to be called with a fresh, empty store."""

    run: Callable[[Any], None]
    deviation: str | None = None

    def __str__(self) -> str:
        return self.run.__name__

    def __call__(self, store: ArtifactStore) -> None:
        """Raise `ContractBroken` unless the store keeps this promise, or deviates as declared."""
        try:
            self.run(store)
        except Exception as error:
            if self.deviation is None:
                what = error if isinstance(error, ContractBroken) else repr(error)
                raise ContractBroken(f"{self} on {store!r}: {self.run.__doc__} {what}") from error
            return
        if self.deviation is not None and self.run not in stores.RACES:
            raise ContractBroken(
                f"{self} on {store!r}: declared as a deviation ({self.deviation}), but it passes;"
                " take the declaration out"
            )


def checks(*, backend: bool, deviations: Mapping[str, str] | None = None) -> list[Check]:
    """Return the checks for a store with Optuna's three methods, or for a whole `Backend`.

    Args:
        backend: Whether the store has the abilities of a `Backend` too.
        deviations: The names of the checks that this store is known not to pass, with the reason.
    """
    declared = dict(deviations or {})
    runs = [*stores.CHECKS, *(abilities.CHECKS if backend else [])]
    chosen = [Check(run, declared.pop(run.__name__, None)) for run in runs]
    if declared:
        raise ValueError(f"declared as deviations, but no such checks: {sorted(declared)}")
    if sys.platform == "linux":
        return chosen
    # Elsewhere fork is gone (Windows) or unsafe beside threads (macOS).
    return [check for check in chosen if check.run is not stores.a_forked_process_reads_and_writes]
