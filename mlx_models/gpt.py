"""gpt in MLX: see specs/gpt.py for the equations; the twin is torch_models/gpt.py.

B batch, T time, S keys, C width, H heads (Hkv of keys and values), D head size, F mlp width,
V vocabulary. Products take `dtype` inputs; norms, rotation, softmax, the residual stream and
logits are in at least float32.
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_models.attention import attention
from mlx_models.cache import KeyValueCache
from mlx_models.layers import (
    Embedding,
    Linear,
    RMSNorm,
    Rotary,
    RotaryTable,
    dropout,
    fold,
    silu,
)
from mlx_models.model import NORMS, LanguageModel


def relu2(x):
    return mx.square(nn.relu(x))


ACTIVATIONS = {"gelu": nn.gelu, "gelu_tanh": nn.gelu_approx, "swiglu": silu, "relu2": relu2}


class Attention(nn.Module):
    """Softmax attention of x (B, T, C) to itself and to what the cache holds."""

    def __init__(self, spec):
        super().__init__()
        C, H, Hkv, D = spec.n_embd, spec.n_head, spec.kv_heads, spec.head_size
        self.n_head, self.n_kv_head, self.qk_norm = H, Hkv, spec.qk_norm
        self.form = "sdpa"
        self.q_proj = Linear(C, H * D, spec.bias)
        self.k_proj = Linear(C, Hkv * D, spec.bias)
        self.v_proj = Linear(C, Hkv * D, spec.bias)
        self.o_proj = Linear(H * D, C, spec.bias)
        if spec.qk_norm:
            self.q_norm = RMSNorm(D, spec.norm_eps)
            self.k_norm = RMSNorm(D, spec.norm_eps)
        self.rotary = Rotary()

    def __call__(self, x, cos, sin, mask, cache=None):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = self.heads(q, self.n_head)  # (B, H, T, D)
        k, v = (self.heads(y, self.n_kv_head) for y in (k, v))  # (B, Hkv, T, D)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if cos is not None:
            q, k = self.rotary(q, cos, sin), self.rotary(k, cos, sin)
        q, k = q.astype(x.dtype), k.astype(x.dtype)
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        y = attention(q, k, v, mask, self.form)
        return self.o_proj(y.swapaxes(1, 2).reshape(*x.shape[:2], -1))

    def heads(self, y, count):
        return y.reshape(*y.shape[:2], count, -1).swapaxes(1, 2)


class MLP(nn.Module):
    """Two matrices with an activation between them, or three: x (B, T, C) → (B, T, C)."""

    def __init__(self, spec):
        super().__init__()
        C, F = spec.n_embd, spec.mlp_width
        self.activation, self.gated = ACTIVATIONS[spec.mlp], spec.mlp == "swiglu"
        if self.gated:
            self.gate_proj = Linear(C, F, spec.bias)
        self.up_proj = Linear(C, F, spec.bias)
        self.down_proj = Linear(F, C, spec.bias)

    def __call__(self, x):
        if self.gated:
            h = self.activation(self.gate_proj(x)) * self.up_proj(x)
        else:
            h = self.activation(self.up_proj(x))
        return self.down_proj(h)


class Block(nn.Module):
    """One layer: x (B, T, C) → (B, T, C)."""

    def __init__(self, spec, dtype, mixer, mlp):
        super().__init__()
        norm = NORMS[spec.norm]
        self.dropout, self.dtype = spec.dropout, dtype
        self.mixer_norm = norm(spec.n_embd, spec.norm_eps)
        self.mixer = mixer
        self.mlp_norm = norm(spec.n_embd, spec.norm_eps)
        self.mlp = mlp

    def __call__(self, x, cos, sin, mask, key=None, cache=None):
        h = self.mixer(self.mixer_norm(x).astype(self.dtype), cos, sin, mask, cache)
        x = x + dropout(h, self.dropout, fold(key, 0))
        h = self.mlp(self.mlp_norm(x).astype(self.dtype))
        return x + dropout(h, self.dropout, fold(key, 1))


class Model(LanguageModel):
    """The frame with masks and rotary positions for all layers, learned ones, and a soft cap."""

    def __init__(self, spec, dtype=mx.float32):
        super().__init__(spec, dtype)
        if spec.pos == "learned":
            self.pos_embed = Embedding(spec.block_size, spec.n_embd)
        self._rotary = RotaryTable(spec.rotary)

    def block(self, i):
        return Block(self.spec, self.dtype, Attention(self.spec), MLP(self.spec))

    def new_cache(self):
        return KeyValueCache(self.spec.window, self.spec.sinks)

    def embedded(self, tokens, start):
        x = super().embedded(tokens, start)
        if self.spec.pos == "learned":
            x = x + self.pos_embed(mx.arange(start, start + tokens.shape[1]))
        return x

    def context(self, tokens, start, cache):
        """(cos, sin, mask): see `RotaryTable` and `KeyValueCache.make_mask`."""
        rope = self.spec.pos == "rope"
        cos, sin = self._rotary(start, tokens.shape[1]) if rope else (None, None)
        return cos, sin, cache.make_mask(tokens)

    def head(self, x):
        """Logits (B, T, V) of x (B, T, C)."""
        logits, cap = super().head(x), self.spec.logit_softcap
        return logits if cap is None else cap * mx.tanh(logits / cap)
