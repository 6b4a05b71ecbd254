"""retnet, which upstream lacks: for mlx_lm in our words, with a model file that knows them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from specs import Spec, UserError, spec_type
from specs.backend import Arrays
from train.neighbours import Folder
from train.neighbours.table import Form, Key

MODEL_FILE = Path(__file__).parents[2] / "mlx_models" / "for_mlx_lm" / "retnet.py"
KIND = spec_type("retnet")
KEYS = {field.name: Key((field.name,)) for field in dataclasses.fields(KIND)}
FORM = Form("retnet", "RetNet", KEYS, fixed={}, names={})
MODEL_TYPES = (FORM.model_type,)


def to_upstream(spec: Spec, weights: Arrays, to: str) -> Folder:
    """See `train.neighbours`."""
    if to != "mlx-lm":
        raise UserError("transformers has no retnet: export it --to mlx-lm")
    tensors = FORM.write_tensors(spec.params(), weights)
    return Folder(FORM.write_config(spec.to_dict()), tensors, MODEL_FILE)


def from_upstream(folder: Folder) -> tuple[Spec, Arrays]:
    """See `train.neighbours`."""
    spec = FORM.read_spec(KIND, folder.config)
    return spec, FORM.read_tensors(spec.params(), folder.tensors)
