"""What a model remembers of a text, in a file: so that a text goes on without being read again.

A safetensors file holds the tokens and the decoder's state; its metadata say which model it is of
and what it must sum up to. It is the same whichever backend wrote it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from specs.backend import Arrays
from specs.base import Spec
from specs.errors import UserError
from train.files import write_bytes

FORMAT = "diptych-memory-1"


@dataclass
class Memory:
    """One text: its tokens (n,), and the state of a decoder of this kind that has read them but
    for the last ones. Nothing of either: a text that begins."""

    kind: str
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    state: Arrays = field(default_factory=dict)

    @property
    def read(self) -> int:
        """How many of the tokens the state stands for."""
        return int(self.state["offset"]) if self.state else 0


def write_memory(file: Path, memory: Memory, model: str) -> None:
    """Write the memory of a `model` (its `digest`), whole or not at all."""
    arrays = {"tokens": memory.tokens, **memory.state}
    about = {"format": FORMAT, "model": model, "kind": memory.kind, "sha256": checksum(arrays)}
    write_bytes(file, save({name: np.asarray(array, order="C") for name, array in arrays.items()},
                           about))


def read_memory(file: Path, model: str) -> Memory:
    """The memory in `file`. Raises `UserError` if it is missing, damaged, or another model's."""
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    try:
        with safe_open(file, "numpy") as opened:
            about = opened.metadata() or {}
            if about.get("format") != FORMAT:
                raise UserError(f"{file} is no memory that this version of generate/run.py has "
                                "saved")
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError:
        raise UserError(f"{file} is damaged, or no safetensors file") from None
    if about.get("sha256") != checksum(arrays):
        raise UserError(f"{file} is damaged: its content is not what was written")
    if about.get("model") != model:
        raise UserError(f"{file} was saved by another model: give the --run and --step that it "
                        "was saved with")
    return Memory(about["kind"], arrays.pop("tokens"), arrays)


def digest(spec: Spec, weights: Mapping[str, np.ndarray]) -> str:
    """What tells this model from all others: fields and weights."""
    about = json.dumps([spec.arch, spec.to_dict()], sort_keys=True)
    return checksum(dict(weights), about)


def checksum(arrays: Arrays, about: str = "") -> str:
    """A sha256 of names, dtypes, shapes and bytes."""
    sum_ = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        sum_.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        sum_.update(array.data)
    return sum_.hexdigest()
