"""Models that grow by trees: what is there already stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["continued", "warm_started"]

_SAVES = 6


def warm_started(folder: Path, scale: float) -> Iterator[Path]:
    """Add ten trees at a time to a random forest, written by joblib."""
    import joblib
    from sklearn.ensemble import RandomForestRegressor

    rows, targets = _samples(max(200, int(20_000 * scale)))
    forest = RandomForestRegressor(n_estimators=0, warm_start=True, max_features=3, random_state=1)
    path = folder / "forest.joblib"
    for _ in range(_SAVES):
        forest.n_estimators += 10
        forest.fit(rows, targets)
        joblib.dump(forest, path)
        yield path


def continued(folder: Path, scale: float) -> Iterator[Path]:
    """Go on boosting from the model that was saved before, in LightGBM's own text format."""
    import lightgbm

    rows, targets = _samples(20_000)
    settings = {
        "objective": "regression",
        "num_leaves": 255,
        "num_threads": 1,
        "deterministic": True,
        "seed": 1,
        "verbosity": -1,
    }
    path = folder / "model.txt"
    for save in range(_SAVES):
        booster = lightgbm.train(
            settings,
            lightgbm.Dataset(rows, targets),
            num_boost_round=max(2, int(150 * scale)),
            init_model=str(path) if save else None,
        )
        booster.save_model(path)
        yield path


def _samples(count: int) -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    rows = random.normal(size=(count, 10))
    return rows, np.sin(rows).sum(axis=1) + random.normal(size=count)
