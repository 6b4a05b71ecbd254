"""bdh, which upstream lacks: for mlx_lm in the official code's words, which are ours, with a
model file that knows them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from specs import Spec, UserError, spec_type
from specs.backend import Arrays
from train.neighbours import Folder
from train.neighbours.table import Form, Key

MODEL_FILE = Path(__file__).parents[2] / "mlx_models" / "for_mlx_lm" / "bdh.py"
KIND = spec_type("bdh")
KEYS = {field.name: Key((field.name,)) for field in dataclasses.fields(KIND)}
FORM = Form("bdh", "BDH", KEYS | {"window": Key(("window",), None)}, fixed={}, names={})
MODEL_TYPES = (FORM.model_type,)


def to_upstream(spec: Any, weights: Arrays, to: str) -> Folder:
    """See `train.neighbours`."""
    if to != "mlx-lm":
        raise UserError("transformers has no bdh: export it --to mlx-lm")
    if spec.window is not None:
        raise UserError(f"window = {spec.window} cannot be exported: in mlx_lm, bdh keeps a state "
                        "that forgets no token")
    return Folder(FORM.write_config(spec.to_dict()), FORM.write_tensors(spec.params(), weights),
                  MODEL_FILE)


def from_upstream(folder: Folder) -> tuple[Spec, Arrays]:
    """See `train.neighbours`."""
    spec = FORM.read_spec(KIND, folder.config)
    return spec, FORM.read_tensors(spec.params(), folder.tensors)
