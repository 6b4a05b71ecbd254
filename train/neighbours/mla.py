"""mla as DeepSeek-V2 of transformers and mlx_lm, with an MLP in the place of all its experts.

One folder is for both: mlx_lm's class wants a scaling of the positions, which is by one here, and
has no tied head, so a tied one is written a second time. Dropout, which only training knows, is
lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specs import Spec, UserError, spec_type
from specs.backend import Arrays
from train.neighbours import Folder
from train.neighbours.gpt import LLAMA_KEYS, LLAMA_NAMES, rope_theta
from train.neighbours.table import HEAD, Form, Key, require_same

EPS = 1e-6  # of the latents' norms there, whatever rms_norm_eps says
ROPE = {"rope_type": "linear", "factor": 1.0}
SAME = ("vocab_size", "block_size", "n_layer", "n_embd", "d_ff", "norm_eps", "rope_theta",
        "tie_embeddings")
SIZES = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")

FORM = Form(
    "deepseek_v2", "DeepseekV2ForCausalLM",
    {**{ours: LLAMA_KEYS[ours] for ours in SAME}, **{name: Key((name,)) for name in SIZES},
     "n_head": Key(("num_attention_heads", "num_key_value_heads")),
     "attn_bias": Key(("attention_bias",), False)},
    fixed={},
    names=LLAMA_NAMES | {"kv_a_proj": "kv_a_proj_with_mqa", "q_a_norm": "q_a_layernorm",
                         "kv_a_norm": "kv_a_layernorm"},
    demands={"hidden_act": "silu", "mlp_bias": False}, writes={"rope_scaling": ROPE},
    prefix="model.")
MODEL_TYPES = (FORM.model_type,)


def to_upstream(spec: Any, weights: Arrays, to: str) -> Folder:
    """See `train.neighbours`."""
    require_same({"norm_eps": spec.norm_eps}, {"norm_eps": EPS}, FORM.title)
    if spec.n_embd % spec.n_head:
        raise UserError(f"n_embd = {spec.n_embd} cannot be exported: {FORM.title} has only "
                        f"multiples of n_head = {spec.n_head}")
    config = FORM.write_config(resolved(spec))
    config["first_k_dense_replace"] = spec.n_layer
    require_same(function(spec), function(read_spec(config)), FORM.title)
    tensors = FORM.write_tensors(spec.params(), weights)
    if spec.tie_embeddings:
        tensors[HEAD] = tensors[FORM.embedding]
    return Folder(config, tensors)


def from_upstream(folder: Folder) -> tuple[Spec, Arrays]:
    """See `train.neighbours`."""
    config, spec = folder.config, read_spec(folder.config)
    if spec.norm_eps != EPS:
        raise UserError(f"rms_norm_eps = {spec.norm_eps}, while the latents' norms have {EPS}: all "
                        "norms of ours have one")
    dense = config.get("first_k_dense_replace", 0)
    if not isinstance(dense, int) or dense < spec.n_layer:
        raise UserError(f"first_k_dense_replace = {dense!r}: some of its {spec.n_layer} layers "
                        "have experts, ours have none beside latent attention")
    return spec, FORM.read_tensors(spec.params(), folder.tensors)


def resolved(spec: Any) -> dict[str, Any]:
    """All fields, with what `None` stands for in the sizes."""
    return {**spec.to_dict(), "d_ff": spec.mlp_width}


def function(spec: Any) -> dict[str, Any]:
    """The fields that the logits depend on."""
    return {name: value for name, value in resolved(spec).items() if name != "dropout"}


def read_spec(config: Mapping[str, Any]) -> Any:
    return FORM.read_spec(spec_type("mla"), {**config, "rope_theta": rope_theta(FORM, config)})
