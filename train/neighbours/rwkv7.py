"""rwkv7, which transformers lacks, as mlx_lm runs it: in the format of flash-linear-attention, in
which it lies on the hub."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from specs import Spec, UserError, spec_type
from specs.backend import Arrays
from train.neighbours import Folder
from train.neighbours.table import Form, Key

KIND = spec_type("rwkv7")
RANKS = {name: Key((name,)) for name in (
    "decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim")}
FORM = Form(
    "rwkv7", "RWKV7ForCausalLM",
    {"vocab_size": Key(("vocab_size",)),
     "block_size": Key(("max_position_embeddings",), 2048),
     "n_layer": Key(("num_hidden_layers",)),
     "n_embd": Key(("hidden_size",)),
     "head_dim": Key(("head_dim",), 64),
     "d_ff": Key(("intermediate_size",), None),
     **RANKS,
     "norm_eps": Key(("norm_eps",), 1e-5),
     "tie_embeddings": Key(("tie_word_embeddings",), False)},
    {},
    {"embed": "embeddings", "mixer_norm": "attn_norm", "mixer": "attn", "mlp_norm": "ffn_norm",
     "mlp": "ffn", "up_proj": "key", "down_proj": "value", "ln_x": "g_norm",
     **{f"{name}{i}": f"{name}_lora.lora.{part}" for name in "wavg"
        for i, part in enumerate(("2.bias", "0.weight", "2.weight"))}},
    {"norm_first": True, "norm_bias": True, "hidden_act": "sqrelu", "attn": None},
    prefix="model.")
MODEL_TYPES = (FORM.model_type,)
FACTOR = re.compile(r"_lora\.lora\.[02]\.weight$")  # (out, in) there, (in, out) in ours
SHARE = re.compile(r"\.attn\.x_[rwkvag]$")  # (1, 1, C) there
BY_HEADS = re.compile(r"\.(k_k|k_a|g_norm\.weight|g_norm\.bias)$")  # once mlx_lm has written them


def to_upstream(spec: Any, weights: Arrays, to: str) -> Folder:
    """See `train.neighbours`."""
    if to != "mlx-lm":
        raise UserError("transformers has no rwkv7: export it --to mlx-lm")
    w, a, v, g = spec.ranks.values()
    sizes = {"d_ff": spec.mlp_width, **dict(zip(RANKS, (w, a, v, g), strict=True))}
    tensors = FORM.write_tensors(spec.params(), weights)
    for name, tensor in tensors.items():
        if FACTOR.search(name):
            tensors[name] = np.ascontiguousarray(tensor.T)
        elif SHARE.search(name):
            tensors[name] = tensor.reshape(1, 1, -1)
    return Folder(FORM.write_config({**spec.to_dict(), **sizes}), tensors)


def from_upstream(folder: Folder) -> tuple[Spec, Arrays]:
    """See `train.neighbours`."""
    spec = FORM.read_spec(KIND, folder.config)
    tensors = dict(folder.tensors)
    for name, tensor in tensors.items():
        if FACTOR.search(name) and tensor.ndim == 2:
            tensors[name] = tensor.T
        elif SHARE.search(name) or BY_HEADS.search(name):
            tensors[name] = tensor.reshape(-1)
    return spec, FORM.read_tensors(spec.params(), tensors)
