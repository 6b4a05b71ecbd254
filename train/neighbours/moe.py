"""moe as Mixtral or Qwen3-MoE of transformers and mlx_lm.

Each matrix of an expert is a tensor of its own there. What only training knows may be lost:
dropout, router noise, and what balance and z-loss count. Upstream's balance loss multiplies means
over all layers, ours those of each layer and row, so that no router_aux_loss_coef says the same:
it is neither written nor read, and each side keeps its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from specs import Param, Spec, spec_type
from specs.backend import Arrays
from train.neighbours import Folder
from train.neighbours.gpt import LLAMA_KEYS, LLAMA_NAMES, rope_theta
from train.neighbours.table import Form, Key, require_same

KEYS = {
    **{ours: key for ours, key in LLAMA_KEYS.items() if ours != "mlp"},
    "expert_mlp": LLAMA_KEYS["mlp"],
    "n_kv_head": Key(("num_key_value_heads",)),
    "n_experts_per_tok": Key(("num_experts_per_tok",)),
}
PLAIN = {"n_shared_experts": 0, "balance": "loss", "embed_scale": False}
TRAINING = {"dropout", "router_noise", "aux_loss_coef", "z_loss_coef"}

MIXTRAL = Form(
    "mixtral", "MixtralForCausalLM",
    KEYS | {"n_experts": Key(("num_local_experts",)), "norm_eps": Key(("rms_norm_eps",), 1e-5),
            "rope_theta": Key(("rope_theta",), 1e6)},
    {**PLAIN, "qk_norm": False, "norm_topk_prob": True},
    LLAMA_NAMES | {"mlp": "block_sparse_moe", "router": "gate", "gate_proj": "w1",
                   "down_proj": "w2", "up_proj": "w3"},
    {"sliding_window": None}, prefix="model.")
QWEN3_MOE = Form(
    "qwen3_moe", "Qwen3MoeForCausalLM",
    # transformers 5 writes the number of experts as the second, mlx_lm reads the first
    KEYS | {"n_experts": Key(("num_experts", "num_local_experts")),
            "d_ff": Key(("moe_intermediate_size",)),
            "norm_topk_prob": Key(("norm_topk_prob",), False)},
    {**PLAIN, "qk_norm": True}, LLAMA_NAMES | {"router": "gate"},
    {"attention_bias": False, "use_sliding_window": False, "decoder_sparse_step": 1,
     "mlp_only_layers": []},
    {"decoder_sparse_step": 1, "mlp_only_layers": []}, prefix="model.")

FORMS = {form.model_type: form for form in (MIXTRAL, QWEN3_MOE)}
MODEL_TYPES = tuple(FORMS)


def to_upstream(spec: Any, weights: Arrays, to: str) -> Folder:
    """See `train.neighbours`."""
    form = QWEN3_MOE if spec.qk_norm else MIXTRAL
    config = form.write_config(resolved(spec))
    if form is QWEN3_MOE:  # of layers without experts, were there any: as wide as those of a token
        config["intermediate_size"] = spec.n_experts_per_tok * spec.expert_width
    require_same(function(spec), function(read_spec(form, config)), form.title)
    if to == "mlx-lm" and form is MIXTRAL:
        require_same({"head_dim": spec.head_size}, {"head_dim": spec.n_embd // spec.n_head},
                     "mixtral of mlx_lm")
    return Folder(config, form.write_tensors(table(spec), apart(spec, weights)))


def from_upstream(folder: Folder) -> tuple[Spec, Arrays]:
    """See `train.neighbours`."""
    form = FORMS[folder.config["model_type"]]
    spec = read_spec(form, folder.config)
    return spec, together(spec, form.read_tensors(table(spec), folder.tensors))


def table(spec: Spec) -> list[Param]:
    """The parameters as upstream has them."""
    return [row for param in spec.params() for row in rows(param)]


def apart(spec: Spec, weights: Arrays) -> Arrays:
    """The weights as upstream has them."""
    return {row.name: weight for param in spec.params() for row, weight in zip(
        rows(param), weights[param.name] if stacked(param) else [weights[param.name]],
        strict=True)}


def together(spec: Spec, weights: Arrays) -> Arrays:
    """The weights as we have them."""
    return {param.name: np.stack([weights[row.name] for row in rows(param)])
            if stacked(param) else weights[param.name] for param in spec.params()}


def rows(param: Param) -> list[Param]:
    """What takes its place in upstream's table: of the experts' matrices each one."""
    if not stacked(param):
        return [param]
    path, _, name = param.name.rpartition(".")
    return [Param(f"{path}.{e}.{name}.weight", param.shape[1:], param.init, param.group)
            for e in range(param.shape[0])]


def stacked(param: Param) -> bool:
    return len(param.shape) == 3


def resolved(spec: Any) -> dict[str, Any]:
    """All fields, with what `None` stands for in the sizes."""
    return {**spec.to_dict(), "n_kv_head": spec.kv_heads, "head_dim": spec.head_size,
            "d_ff": spec.expert_width}


def function(spec: Any) -> dict[str, Any]:
    """The fields that the logits depend on."""
    return {name: value for name, value in resolved(spec).items() if name not in TRAINING}


def read_spec(form: Form, config: Mapping[str, Any]) -> Any:
    return form.read_spec(spec_type("moe"), {**config, "rope_theta": rope_theta(form, config)})
