"""The hinge: what each architecture and each backend is. numpy and the standard library only."""

from __future__ import annotations

import importlib
from pathlib import Path

from specs.base import Param, Spec, did_you_mean
from specs.errors import UserError, main_exit
from specs.init import init_weights

__all__ = ["Param", "Spec", "UserError", "architectures", "init_weights", "main_exit", "spec_type"]

_HOUSE = {"__init__", "backend", "base", "errors", "init", "layered", "machine", "online"}


def architectures() -> list[str]:
    """Names of all architectures: the files of this folder that are not the house's own."""
    return sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - _HOUSE)


def spec_type(arch: str) -> type[Spec]:
    """The `Spec` class of the module `specs.{arch}`. Raises `UserError` for an unknown name."""
    if arch not in architectures():
        raise UserError(f"no architecture {arch!r}" + did_you_mean(arch, architectures()))
    return importlib.import_module(f"specs.{arch}").Spec
