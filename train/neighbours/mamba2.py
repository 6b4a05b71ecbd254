"""mamba2 as Mamba2 of transformers and mlx_lm: one folder, where both compute what ours does.

Where one of them does not (docs/upstream), it is refused. Dropout may be lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from specs import Spec, UserError, spec_type
from specs.backend import Arrays
from train.neighbours import Folder
from train.neighbours.table import Form, Key, require_same

KIND = spec_type("mamba2")
KEYS = {
    "vocab_size": Key(("vocab_size",)),
    "block_size": Key(("max_position_embeddings",), 2048),
    "n_layer": Key(("num_hidden_layers",)),
    "n_embd": Key(("hidden_size",)),
    "d_state": Key(("state_size", "ssm_state_size")),
    "d_conv": Key(("conv_kernel",), 4),
    "expand": Key(("expand",), 2),
    "head_dim": Key(("head_dim",), 64),
    "n_groups": Key(("n_groups",), 8),
    "chunk_size": Key(("chunk_size",), 256),
    "time_step_limit": Key(("time_step_limit",), (0.0, math.inf)),
    "norm_eps": Key(("layer_norm_epsilon",), 1e-5),
    "tie_embeddings": Key(("tie_word_embeddings",), False),
}
NAMES = {"embed": "embeddings", "mixer_norm": "norm", "norm.weight": "norm_f.weight",
         "conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias"}
FORM = Form("mamba2", "Mamba2ForCausalLM", KEYS, {}, NAMES,
            {"use_bias": False, "use_conv_bias": True, "hidden_act": "silu"},
            {"use_bias": False, "use_conv_bias": True, "time_step_rank": "auto"},
            prefix="backbone.")
MODEL_TYPES = (FORM.model_type,)
CONV = "conv1d.weight"
# What each of them computes, whatever its config says.
ONLY: dict[str, tuple[str, dict[str, Any]]] = {
    "hf": ("transformers, in its step of one token,", {"time_step_limit": (0.0, None)}),
    "mlx-lm": ("mlx_lm", {"n_groups": 1, "norm_eps": 1e-5})}


def to_upstream(spec: Any, weights: Arrays, to: str) -> Folder:
    """See `train.neighbours`."""
    title, only = ONLY[to]
    require_same({name: getattr(spec, name) for name in only}, only, title)
    least, most = spec.time_step_limit
    limit = [least, math.inf if most is None else most]
    config = {**FORM.write_config({**spec.to_dict(), "time_step_limit": limit}),
              "num_heads": spec.heads, "intermediate_size": spec.inner}
    tensors = FORM.write_tensors(spec.params(), weights)
    return Folder(config, {name: tensor[:, None] if name.endswith(CONV) else tensor
                           for name, tensor in tensors.items()})


def from_upstream(folder: Folder) -> tuple[Spec, Arrays]:
    """See `train.neighbours`."""
    spec: Any = FORM.read_spec(KIND, {**folder.config, "time_step_limit": limit(folder.config)})
    for name, size in (("num_heads", spec.heads), ("intermediate_size", spec.inner)):
        if folder.config.get(name, size) != size:
            raise UserError(f"{name} = {folder.config[name]!r} does not fit expand = {spec.expand},"
                            f" hidden_size and head_dim, which make it {size}")
    # (channels, 1, taps) in transformers, (channels, taps, 1) in what mlx_lm saves
    tensors = {name: tensor.reshape(len(tensor), -1) if name.endswith(CONV) and tensor.ndim == 3
               else tensor for name, tensor in folder.tensors.items()}
    return spec, FORM.read_tensors(spec.params(), tensors)


def limit(config: Mapping[str, Any]) -> Any:
    """[least, largest], null for infinity, which transformers 5 writes as an object."""
    found = config.get("time_step_limit", KEYS["time_step_limit"].default)
    if not isinstance(found, (list, tuple)):
        return found
    return [None if value in (math.inf, {"__float__": "Infinity"}) else value for value in found]
