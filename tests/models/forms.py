"""The softmax transformers in all their forms, small, and what their tests compare with."""

from __future__ import annotations

from typing import Any

import numpy as np

from specs import spec_type
from specs.backend import Arrays, Backend, Dtype
from specs.base import Spec

FORMS: dict[str, dict[str, Any]] = {
    "gpt-gpt2": {"norm": "layernorm", "pos": "learned", "mlp": "gelu_tanh", "bias": True},
    "gpt-llama": {"tie_embeddings": False, "n_kv_head": None},
    "gpt-qwen3": {"qk_norm": True, "head_dim": 12},
    "gpt-mistral": {"window": 6},
    "gpt-sinks": {"window": 6, "sinks": 3, "n_kv_head": 1},
    "gpt-relu2": {"mlp": "relu2", "pos": "none", "logit_softcap": 3.0},
    "gpt-gelu": {"mlp": "gelu", "norm": "layernorm", "qk_norm": True},
    "mla-deepseek": {"tie_embeddings": False},
    "mla-fullq": {"q_lora_rank": None, "v_head_dim": 12},
    "mla-nope0": {"qk_nope_head_dim": 0, "qk_rope_head_dim": 8, "v_head_dim": 8, "attn_bias": True},
}


def spec_of(form: str, **fields: Any) -> Spec:
    tiny = spec_type(form.partition("-")[0]).preset("tiny", block_size=64)
    return tiny.replace(**{**FORMS[form], **fields})


def tokens(B: int = 2, T: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 64, (B, T)).astype(np.int32)


def logits(backend: Backend, spec: Spec, weights: Arrays, dtype: Dtype = "float32") -> np.ndarray:
    return backend.logits(backend.build(spec, weights, dtype), tokens())


def close(a: np.ndarray, b: np.ndarray, ulps: float = 64) -> bool:
    """Equal but for float32 rounding of sums."""
    return bool(np.linalg.norm(a - b) <= ulps * 2**-24 * np.linalg.norm(b))
