"""bdh, which upstream lacks: our fields and the official names of its tensors, for mlx_lm with a
model file that knows both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from specs import Spec, UserError, spec_type
from specs.backend import Arrays, load_strictly
from train.neighbours import Folder

MODEL_TYPES = ("bdh",)
MODEL_FILE = Path(__file__).parents[2] / "mlx_models" / "for_mlx_lm" / "bdh.py"


def to_upstream(spec: Any, weights: Arrays, to: str) -> Folder:
    """See `train.neighbours`."""
    if to != "mlx-lm":
        raise UserError("transformers has no bdh: export it --to mlx-lm")
    if spec.window is not None:
        raise UserError(f"window = {spec.window} cannot be exported: in mlx_lm, bdh keeps a state "
                        "that forgets no token")
    return Folder({"model_type": "bdh", **spec.to_dict()}, dict(weights), MODEL_FILE)


def from_upstream(folder: Folder) -> tuple[Spec, Arrays]:
    """See `train.neighbours`."""
    kind = spec_type("bdh")
    names = [field.name for field in dataclasses.fields(kind)]
    for name in names:
        if name not in folder.config:
            raise UserError(f"{name!r} is missing")
    spec = kind.from_dict({name: folder.config[name] for name in names})
    weights = load_strictly(spec, folder.tensors, "the folder")
    for name, tensor in weights.items():
        if tensor.dtype.kind != "f":
            raise UserError(f"{name} holds {tensor.dtype} numbers: quantized weights must be "
                            "dequantized first")
    return spec, {name: tensor.astype(np.float32) for name, tensor in weights.items()}
