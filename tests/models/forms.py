"""The architectures in all their forms, small, and what their tests compare with."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.cases import lively_weights
from specs import spec_type
from specs.backend import Arrays, Backend, Dtype
from specs.base import Spec

FORMS: dict[str, dict[str, Any]] = {
    "gpt-gpt2": {"norm": "layernorm", "pos": "learned", "mlp": "gelu_tanh", "bias": True},
    "gpt-llama": {"tie_embeddings": False, "n_kv_head": None},
    "gpt-qwen3": {"qk_norm": True, "head_dim": 12},
    "gpt-llama3": {"rope_theta": 1e6, "rope_factor": 8.0},
    "gpt-mistral": {"window": 6},
    "gpt-sinks": {"window": 6, "sinks": 3, "n_kv_head": 1},
    "gpt-relu2": {"mlp": "relu2", "pos": "none", "logit_softcap": 3.0},
    "gpt-gelu": {"mlp": "gelu", "norm": "layernorm", "qk_norm": True},
    "moe-mixtral": {"tie_embeddings": False},
    "moe-qwen3": {"qk_norm": True, "head_dim": 12, "n_experts": 6, "n_experts_per_tok": 3,
                  "norm_topk_prob": False},
    "moe-shared": {"n_shared_experts": 2, "balance": "bias", "router_noise": 0.1, "n_experts": 9},
    "moe-gelu": {"expert_mlp": "gelu", "embed_scale": True, "d_ff": 7},
    "moe-silu": {"expert_mlp": "silu", "n_experts": 3, "n_experts_per_tok": 1},
    "moe-all": {"n_experts": 2, "z_loss_coef": 0.01},
    "mla-deepseek": {"tie_embeddings": False},
    "mla-fullq": {"q_lora_rank": None, "v_head_dim": 12},
    "mla-nope0": {"qk_nope_head_dim": 0, "qk_rope_head_dim": 8, "v_head_dim": 8, "attn_bias": True},
    "mamba2-plain": {},
    "mamba2-groups": {"n_groups": 2, "head_dim": 8, "chunk_size": 7, "tie_embeddings": False},
    "mamba2-limits": {"time_step_limit": [0.05, 0.9], "d_conv": 3, "expand": 3, "d_state": 5},
    "mamba2-least": {"head_dim": 64, "d_conv": 2, "chunk_size": 1, "n_layer": 1},
    "rwkv7-goose": {},
    "rwkv7-tied": {"tie_embeddings": True, "head_dim": 16, "d_ff": None},
    "rwkv7-odd": {"n_embd": 35, "head_dim": 7, "d_ff": 33, "n_layer": 3, "a_low_rank_dim": 1},
    "rwkv7-one": {"n_embd": 24, "head_dim": 24, "n_layer": 1, "gate_low_rank_dim": 30},
    "retnet-paper": {},
    "retnet-torchscale": {"n_head": 2, "tie_embeddings": False, "d_ff": 37},
    "retnet-narrow": {"v_dim_multiplier": 1, "n_embd": 36, "n_head": 6, "embed_scale": False},
    "retnet-wide": {"v_dim_multiplier": 3, "n_head": 1},
    "hyena-paper": {},
    "hyena-order3": {"order": 3, "tie_embeddings": False, "filter_order": 7, "d_ff": 33},
    "hyena-order4": {"order": 4, "n_embd": 15, "short_filter": 4, "n_layer": 1},
    "hyena-least": {"emb_dim": 3, "filter_order": 1, "short_filter": 2, "d_ff": None},
    "toeplitz-softplus": {},
    "toeplitz-mean": {"do_toep_mean": True, "n_head": 2, "tie_embeddings": True},
    "toeplitz-raw": {"kernel": "raw", "n_head": 1, "d_ff": None},
    "toeplitz-noproj": {"do_toep_proj": False, "n_embd": 35, "n_head": 7, "kernel": "raw"},
}


def spec_of(form: str, **fields: Any) -> Spec:
    tiny = spec_type(form.partition("-")[0]).preset("tiny", block_size=64)
    return tiny.replace(**{**FORMS[form], **fields})


def weights_of(spec: Spec, seed: int = 0) -> Arrays:
    """Initial weights, but with nothing constant and with routers that have preferences."""
    return {name: 5 * w if "router" in name else w
            for name, w in lively_weights(spec, seed).items()}


def tokens(B: int = 2, T: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 64, (B, T)).astype(np.int32)


def logits(backend: Backend, spec: Spec, weights: Arrays, dtype: Dtype = "float32") -> np.ndarray:
    return backend.logits(backend.build(spec, weights, dtype), tokens())


def close(a: np.ndarray, b: np.ndarray, ulps: float = 64) -> bool:
    """Equal but for float32 rounding of sums."""
    return bool(np.linalg.norm(a - b) <= ulps * 2**-24 * np.linalg.norm(b))


def assert_nothing_later_is_seen(backend: Backend, spec: Spec, dtype: Dtype, data: np.ndarray,
                                 places: tuple[int, ...]) -> None:
    """Other tokens from each place on change no logit before it, to the bit, and that one."""
    model = backend.build(spec, weights_of(spec), dtype)
    before = backend.logits(model, data)
    for t in places:
        changed = data.copy()
        changed[:, t:] = (data[:, t:] + 1) % spec.vocab_size
        after = backend.logits(model, changed)
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert np.any(before[:, t] != after[:, t])
