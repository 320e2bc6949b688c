"""Checkpoints of a small transformer: 23 million parameters at scale 1, 8 saves of most.

Rule 1: every layer begins with its own random weights; copies of one would be found in each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = [
    "everything",
    "frozen_backbone",
    "growing_history",
    "last_layers",
    "lora_full",
    "lora_merged",
    "other_names",
    "two_studies",
]

_SAVES = 8
_LAYERS = 6
_CLASSES = 100
_RANK = 16

# What LoRA adapts in each layer.
_ADAPTED = ("self_attn.in_proj_weight", "linear1.weight", "linear2.weight")


def frozen_backbone(folder: Path, scale: float) -> Iterator[Path]:
    """Train the head alone; every save has model and optimizer, under the same name."""
    model = _model(scale, seed=1)
    optimizer = _optimizer(model["head"].parameters())
    for epoch in range(_SAVES):
        _train(optimizer)
        yield _save(folder / "checkpoint.pt", model=model, optimizer=optimizer, epoch=epoch)


def growing_history(folder: Path, scale: float) -> Iterator[Path]:
    """Do the same with the losses of all steps in the file, under a new name each time.

    They come first in the file, so that everything behind them moves.
    """
    import torch

    model = _model(scale, seed=2)
    optimizer = _optimizer(model["head"].parameters())
    history: list[dict[str, Any]] = []
    for epoch in range(_SAVES):
        _train(optimizer)
        losses = torch.rand(max(10, int(5000 * scale))).tolist()
        history.append({"epoch": epoch, "losses": losses})
        path = folder / f"epoch-{epoch:02}.pt"
        yield _save(path, model=model, optimizer=optimizer, history=history)


def last_layers(folder: Path, scale: float) -> Iterator[Path]:
    """Train the last two of six layers and the head."""
    model = _model(scale, seed=3)
    trained = [*model["layers"][-2:].parameters(), *model["head"].parameters()]
    optimizer = _optimizer(trained)
    for epoch in range(_SAVES):
        _train(optimizer)
        yield _save(folder / "checkpoint.pt", model=model, optimizer=optimizer, epoch=epoch)


def lora_full(folder: Path, scale: float) -> Iterator[Path]:
    """Train low-rank adapters, and save them inside the state dict of the whole model."""
    model = _with_adapters(_model(scale, seed=4))
    optimizer = _optimizer(model["adapters"].parameters())
    for epoch in range(_SAVES):
        _train(optimizer)
        path = folder / f"epoch-{epoch:02}.pt"
        yield _save(path, model=model, optimizer=optimizer, epoch=epoch)


def lora_merged(folder: Path, scale: float) -> Iterator[Path]:
    """Train low-rank adapters, and save the weights with them added, as .safetensors."""
    from safetensors.torch import save_file

    model = _with_adapters(_model(scale, seed=5))
    optimizer = _optimizer(model["adapters"].parameters())
    path = folder / "model.safetensors"
    for _ in range(_SAVES):
        _train(optimizer)
        weights = model.state_dict()
        merged = {name: weights[name] for name in weights if not name.startswith("adapters.")}
        for number in range(_LAYERS):
            for name in _ADAPTED:
                low, high = (
                    weights[f"adapters.{_adapter(number, name)}_{side}"] for side in ("low", "high")
                )
                merged[f"layers.{number}.{name}"] = merged[f"layers.{number}.{name}"] + high @ low
        save_file(merged, path)
        yield path


def everything(folder: Path, scale: float) -> Iterator[Path]:
    """Train all of it: no byte of a weight stays."""
    model = _model(scale, seed=6)
    optimizer = _optimizer(model.parameters())
    for epoch in range(4):
        _train(optimizer)
        yield _save(folder / "checkpoint.pt", model=model, optimizer=optimizer, epoch=epoch)


def other_names(folder: Path, scale: float) -> Iterator[Path]:
    """Save the same state four times; torch.save writes the file's name before each tensor."""
    model = _model(scale, seed=7)
    for name in ("last", "best", "epoch-07-of-08", "model-for-the-paper-final"):
        yield _save(folder / f"{name}.pt", model=model)


def two_studies(folder: Path, scale: float, *, seed: int = 8) -> Iterator[Path]:
    """Train two heads of other sizes on one pretrained backbone; the second study comes after."""
    import torch

    model = _model(scale, seed=seed)
    width = model["head"].in_features
    for study, classes in (("cats", 10), ("birds", 200)):
        model["head"] = torch.nn.Linear(width, classes)
        optimizer = _optimizer(model["head"].parameters())
        for epoch in range(3):
            _train(optimizer)
            yield _save(folder / f"{study}.pt", model=model, optimizer=optimizer, epoch=epoch)


def _model(scale: float, *, seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    width = max(32, round(16 * scale**0.5) * 32)
    layers = [
        torch.nn.TransformerEncoderLayer(width, nhead=8, dim_feedforward=4 * width)
        for _ in range(_LAYERS)
    ]
    return torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(16 * width, width),
            "layers": torch.nn.ModuleList(layers),
            "head": torch.nn.Linear(width, _CLASSES),
        }
    )


def _with_adapters(model: Any) -> Any:
    import torch

    adapters = {}
    for number, layer in enumerate(model["layers"]):
        for name in _ADAPTED:
            rows, columns = layer.get_parameter(name).shape
            adapters[f"{_adapter(number, name)}_low"] = torch.randn(_RANK, columns) / columns
            adapters[f"{_adapter(number, name)}_high"] = torch.zeros(rows, _RANK)
    model["adapters"] = torch.nn.ParameterDict(adapters)
    return model


def _adapter(number: int, name: str) -> str:
    return f"{number}_{name.replace('.', '_')}"


def _optimizer(parameters: Iterable[Any]) -> Any:
    import torch

    return torch.optim.Adam(parameters, lr=1e-3)


def _train(optimizer: Any) -> None:
    """Make one step: Adam moves every element by about its learning rate."""
    import torch

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def _save(path: Path, **entries: Any) -> Path:
    import torch

    states = {
        name: entry.state_dict() if hasattr(entry, "state_dict") else entry
        for name, entry in entries.items()
    }
    torch.save(states, path)
    return path
