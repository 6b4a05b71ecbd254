"""The neighbours, transformers and mlx_lm: how an architecture is written in their format.

One module per architecture, of the same name. It offers

    MODEL_TYPES                        what config.json calls it there
    to_upstream(spec, weights, to)     a `Folder` for "hf" or "mlx-lm"; `UserError` names the field
                                       of the spec that cannot be said there
    from_upstream(folder)              (spec, weights in float32); `UserError` names the key or
                                       the tensor that is no part of our architecture
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from specs import UserError, architectures
from specs.backend import Arrays
from specs.base import did_you_mean

TARGETS = ("hf", "mlx-lm")


@dataclass(frozen=True)
class Folder:
    """config.json and the tensors of a folder in upstream's format.

    `model_file`: Python code that mlx_lm needs to run it; a copy of it goes into the folder.
    """

    config: dict[str, Any]
    tensors: Arrays
    model_file: Path | None = None


def neighbours() -> list[str]:
    """The architectures that upstream's formats are known for."""
    return [arch for arch in architectures() if importlib.util.find_spec(f"{__name__}.{arch}")]


def neighbour(arch: str) -> ModuleType:
    """The module that knows how to write `arch`. Raises `UserError` if there is none."""
    if arch not in neighbours():
        raise UserError(f"{arch} cannot be exported yet, only {', '.join(neighbours())}")
    return importlib.import_module(f"{__name__}.{arch}")


def model_types() -> dict[str, str]:
    """Upstream's name → ours."""
    return {name: arch for arch in neighbours() for name in neighbour(arch).MODEL_TYPES}


def neighbour_of(model_type: Any) -> ModuleType:
    """The module that knows how to read this `model_type`. Raises `UserError` if none does."""
    known = model_types()
    if not isinstance(model_type, str) or model_type not in known:
        raise UserError(f"model_type = {model_type!r} is no architecture of ours"
                        + did_you_mean(str(model_type), list(known)).replace("It has", "Known"))
    return neighbour(known[model_type])
