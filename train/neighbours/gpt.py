"""gpt as GPT-2, Llama, Qwen3 or Mistral of transformers and mlx_lm.

GPT-2 keeps q, k and v of a layer in one matrix, and has biases: zeros where ours has none.
What only training knows, dropout, may be lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specs import Spec, UserError, spec_type
from specs.backend import Arrays
from train.neighbours import Folder
from train.neighbours.table import Form, Key, require_same

MISTRAL_FILE = Path(__file__).parents[2] / "mlx_models" / "for_mlx_lm" / "mistral.py"
BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")  # computed, not learnt

PLAIN = {"sinks": 0, "logit_softcap": None}
ROTARY = {**PLAIN, "norm": "rmsnorm", "pos": "rope"}
LLAMA_KEYS = {
    "vocab_size": Key(("vocab_size",)),
    "block_size": Key(("max_position_embeddings",)),
    "n_layer": Key(("num_hidden_layers",)),
    "n_embd": Key(("hidden_size",)),
    "n_head": Key(("num_attention_heads",)),
    "n_kv_head": Key(("num_key_value_heads",), None),
    "head_dim": Key(("head_dim",), None),
    "d_ff": Key(("intermediate_size",)),
    "norm_eps": Key(("rms_norm_eps",), 1e-6),
    "rope_theta": Key(("rope_theta",), 10000.0),
    "mlp": Key(("hidden_act",), "silu", {"swiglu": ("silu", "swish")}),
    "tie_embeddings": Key(("tie_word_embeddings",), False),
}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # and a factor: see specs/gpt.py
LLAMA_NAMES = {"embed": "embed_tokens", "mixer_norm": "input_layernorm", "mixer": "self_attn",
               "mlp_norm": "post_attention_layernorm"}

LLAMA = Form(
    "llama", "LlamaForCausalLM",
    LLAMA_KEYS | {"bias": Key(("attention_bias", "mlp_bias"), False)},
    {**ROTARY, "qk_norm": False, "window": None}, LLAMA_NAMES, prefix="model.")
MISTRAL = Form(
    "mistral", "MistralForCausalLM",
    LLAMA_KEYS | {"n_kv_head": Key(("num_key_value_heads",)),
                  "window": Key(("sliding_window",), 4096)},
    {**ROTARY, "qk_norm": False, "bias": False}, LLAMA_NAMES, prefix="model.")
QWEN3 = Form(
    "qwen3", "Qwen3ForCausalLM",
    LLAMA_KEYS | {"n_kv_head": Key(("num_key_value_heads",)), "head_dim": Key(("head_dim",), 128),
                  "window": Key(("sliding_window",), 4096)},
    {**ROTARY, "qk_norm": True, "bias": False}, LLAMA_NAMES, {"attention_bias": False},
    prefix="model.")
GPT2 = Form(
    "gpt2", "GPT2LMHeadModel",
    {"vocab_size": Key(("vocab_size",)),
     "block_size": Key(("n_positions", "n_ctx")),
     "n_layer": Key(("n_layer",)),
     "n_embd": Key(("n_embd",)),
     "n_head": Key(("n_head",)),
     "d_ff": Key(("n_inner",), None),
     "norm_eps": Key(("layer_norm_epsilon",), 1e-5),
     "mlp": Key(("activation_function",), "gelu_new", {
         "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh"), "gelu": ("gelu",), "relu2": ("relu2",)}),
     "dropout": Key(("resid_pdrop", "embd_pdrop"), 0.1),
     "tie_embeddings": Key(("tie_word_embeddings",), True)},
    {**PLAIN, "norm": "layernorm", "pos": "learned", "qk_norm": False, "bias": True,
     "window": None},
    {"embed": "wte", "pos_embed": "wpe", "layers": "h", "mixer_norm": "ln_1", "mixer": "attn",
     "q_proj": "c_attn", "k_proj": "c_attn", "v_proj": "c_attn", "o_proj": "c_proj",
     "mlp_norm": "ln_2", "up_proj": "c_fc", "down_proj": "c_proj", "norm": "ln_f"},
    {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
     "add_cross_attention": False},
    {"attn_pdrop": 0.0}, other_prefix="transformer.", transposed=True)  # mlx_lm wants no prefix

FORMS = {form.model_type: form for form in (GPT2, LLAMA, QWEN3, MISTRAL)}
MODEL_TYPES = tuple(FORMS)
# What mlx_lm's class of the same name has not: of Mistral's window see MISTRAL_FILE.
MLX_LM: dict[str, dict[str, Any]] = {
    "gpt2": {"mlp": "gelu_tanh", "d_ff": None, "tie_embeddings": True},
    "qwen3": {"window": None}}


def form_of(spec: Any) -> Form:
    """The class that comes closest."""
    if spec.norm == "layernorm" or spec.pos == "learned":
        return GPT2
    if spec.qk_norm:
        return QWEN3
    # Llama's class in transformers refuses a width that is no multiple of the heads.
    return LLAMA if spec.window is None and spec.n_embd % spec.n_head == 0 else MISTRAL


def to_upstream(spec: Any, weights: Arrays, to: str) -> Folder:
    """See `train.neighbours`."""
    form = form_of(spec)
    if form is GPT2:
        spec = spec.replace(bias=True)
        weights = {p.name: weights.get(p.name, np.zeros(p.shape, np.float32))
                   for p in spec.params()}
    config = form.write_config(resolved(spec))
    if form is QWEN3:
        config |= {"use_sliding_window": spec.window is not None, "max_window_layers": 0}
    if spec.rope_factor is not None:
        config["rope_scaling"] = {**LLAMA3, "factor": spec.rope_factor}
    require_same(function(spec), function(read_spec(form, config)), form.title)
    model_file = None
    if to == "mlx-lm":
        less = spec.replace(**MLX_LM.get(form.model_type, {}))
        require_same(function(spec), function(less), f"{form.model_type} of mlx_lm")
        model_file = None if spec.window is None else MISTRAL_FILE
    return Folder(config, form.write_tensors(spec.params(), weights), model_file)


def from_upstream(folder: Folder) -> tuple[Spec, Arrays]:
    """See `train.neighbours`."""
    form = FORMS[folder.config["model_type"]]
    spec = read_spec(form, folder.config)
    tensors = {name: tensor for name, tensor in folder.tensors.items()
               if not BUFFERS.search(name)}
    return spec, form.read_tensors(spec.params(), tensors)


def resolved(spec: Any) -> dict[str, Any]:
    """All fields, with what `None` stands for in the sizes."""
    return {**spec.to_dict(), "n_kv_head": spec.kv_heads, "head_dim": spec.head_size,
            "d_ff": spec.mlp_width}


def function(spec: Any) -> dict[str, Any]:
    """The fields that the logits depend on."""
    unused = {"dropout"} if spec.pos == "rope" else {"dropout", "rope_theta", "rope_factor"}
    return {name: value for name, value in resolved(spec).items() if name not in unused}


def read_spec(form: Form, config: Mapping[str, Any]) -> Any:
    if form is GPT2:
        return form.read_spec(spec_type("gpt"), config)
    spec: Any = form.read_spec(
        spec_type("gpt"), {**config, "rope_theta": rope_theta(form, config, (LLAMA3,))})
    spec = spec.replace(rope_factor=next((rope["factor"] for rope in ropes(config)
                                          if rope.get("rope_type") == "llama3"), None))
    return spec.replace(window=qwen3_window(spec, config)) if form is QWEN3 else spec


def ropes(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What says how positions are scaled: transformers 5 has it in `rope_parameters`, which was
    `rope_scaling`."""
    found = {name: config.get(name) or {} for name in ("rope_scaling", "rope_parameters")}
    for name, rope in found.items():
        if not isinstance(rope, dict):
            raise UserError(f"{name} = {rope!r} must be an object")
    return list(found.values())


def rope_theta(form: Form, config: Mapping[str, Any],
               known: Sequence[Mapping[str, Any]] = ()) -> Any:
    """The base of the angles. Raises `UserError` for any scaling but that by one and those
    `known`, whatever their factor."""
    theta = config.get("rope_theta", form.keys["rope_theta"].default)
    for rope in ropes(config):
        kind = rope.get("rope_type", rope.get("type", "default"))
        scaled = kind != "default" and (kind, rope.get("factor")) != ("linear", 1) and not any(
            scaling.items() <= rope.items() and "factor" in rope for scaling in known)
        share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1))
        if scaled or share not in (1, None):
            raise UserError(f"rope {rope!r}: positions that are scaled like this or rotate in "
                            "part are nothing that our architecture has")
        theta = rope.get("rope_theta", theta)
    return theta


def qwen3_window(spec: Any, config: Mapping[str, Any]) -> int | None:
    """The window of all layers. Raises `UserError` where some have one and others have none."""
    window = spec.window if config.get("use_sliding_window", False) else None
    first = 0 if window is None else config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or [
        "full_attention" if window is None or i < first else "sliding_attention"
        for i in range(spec.n_layer)]
    if kinds == ["full_attention"] * spec.n_layer:
        return None
    if kinds == ["sliding_attention"] * spec.n_layer and window is not None:
        return window
    raise UserError("the layers see differently far (layer_types, max_window_layers): all of ours "
                    "have one window")
