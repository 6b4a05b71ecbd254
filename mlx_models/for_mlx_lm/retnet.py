"""RetNet, the retentive network (Sun et al., arXiv 2307.08621), for mlx_lm.

It lies beside the config.json whose "model_file" names it. It needs mlx_lm alone, which runs it
when told to: `mlx_lm.load(path, trust_remote_code=True)`, or --trust-remote-code.

    x = embed · sqrt(n_embd)             with embed_scale
    n_layer times:
        h = RMS(x);  q, k = RoPE(h Wq), RoPE(h Wk)/sqrt(dk);  v = h Wv
        o_t = Σ_{s ≤ t} γ^(t−s) (q_t·k_s) v_s          γ = 1 − 2^(−5−head)
        x = x + (RMS_head(o) ⊙ silu(h Wg)) Wo
        h = RMS(x);  x = x + (silu(h Wgate) ⊙ h Wup) Wdown
    logits = RMS(x) Whead

The state S = Σ γ^(t−s) kᵀv, (dk × dv) per head and layer, stands for all tokens read: it is what
the cache holds, so memory does not grow with the text. Products with weights are in the weights'
dtype; norms, the residual stream and retention are in float32.
B batch, T time, C width, H heads, dk and dv their sizes of keys and of values.
"""

import math
from dataclasses import dataclass
from typing import Optional

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import ArraysCache

CHUNK = 64  # tokens; a longer chunk costs more scores, a shorter one more states


@dataclass
class ModelArgs(BaseModelArgs):
    model_type: str = "retnet"
    vocab_size: int = 256
    n_layer: int = 6
    n_embd: int = 256
    n_head: int = 4
    v_dim_multiplier: int = 2
    d_ff: Optional[int] = None  # noqa: UP045
    norm_eps: float = 1e-6
    embed_scale: bool = True
    tie_embeddings: bool = True


def rotate(x, cos, sin):
    """RoPE on adjacent pairs of x (B, H, T, dk), with cos and sin (B, 1, T, dk/2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = (even * cos - odd * sin, odd * cos + even * sin)
    return mx.stack(pairs, axis=-1).reshape(x.shape)


def retain(q, k, v, place, state, powers):
    """(o, S after all) for q and k (B, H, T, dk), v (B, H, T, dv) behind the state S.

    `place` (B or 1, T): how many tokens that count there are up to each; `powers` (H, CHUNK + 1):
    of γ. All pairs of tokens inside a chunk; S (B, H, dk, dv), None for zero, for all before it.
    """
    def decay(tokens):
        return mx.take(powers, tokens, axis=1).swapaxes(0, 1)

    outputs, before = [], mx.zeros_like(place[:, :1])
    for start in range(0, q.shape[2], CHUNK):
        now = slice(start, start + CHUNK)
        q_i, k_i, v_i = (a[:, :, now] for a in (q, k, v))
        near = place[:, now] - before
        last, before = near[:, -1:], place[:, now][:, -1:]
        apart = mx.maximum(near[:, :, None] - near[:, None], 0)
        y = (q_i @ k_i.swapaxes(-1, -2) * mx.tril(decay(apart))) @ v_i
        if state is not None:
            y = y + (q_i * decay(near)[..., None]) @ state
        update = (k_i * decay(last - near)[..., None]).swapaxes(-1, -2) @ v_i
        state = update if state is None else decay(last)[..., None] * state + update
        outputs.append(y)
    return mx.concatenate(outputs, axis=2), state


class Retention(nn.Module):
    """x (B, T, C) → (B, T, C)."""

    def __init__(self, args):
        super().__init__()
        C, inner = args.n_embd, args.v_dim_multiplier * args.n_embd
        self.n_head, self.scale = args.n_head, (C // args.n_head) ** -0.5
        self.q_proj = nn.Linear(C, C, bias=False)
        self.k_proj = nn.Linear(C, C, bias=False)
        self.v_proj = nn.Linear(C, inner, bias=False)
        self.g_proj = nn.Linear(C, inner, bias=False)
        self.o_proj = nn.Linear(inner, C, bias=False)

    def __call__(self, x, positions, powers, cache):
        B, T, _ = x.shape
        cos, sin, place, mask = positions
        q, k, v = (p(x).astype(mx.float32).reshape(B, T, self.n_head, -1).swapaxes(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k * self.scale, cos, sin)
        if mask is not None:  # padding writes nothing
            k = mx.where(mask[:, None, :, None], k, 0)
        o, state = retain(q, k, v, place, None if cache is None else cache[0], powers)
        if cache is not None:
            cache[0] = state
            cache.advance(T)
        o = mx.fast.rms_norm(o, None, 1e-24).astype(x.dtype).swapaxes(1, 2).reshape(B, T, -1)
        return self.o_proj(o * nn.silu(self.g_proj(x)))


class MLP(nn.Module):
    def __init__(self, args):
        super().__init__()
        C, F = args.n_embd, args.d_ff or args.n_embd * 4 // 3
        self.gate_proj = nn.Linear(C, F, bias=False)
        self.up_proj = nn.Linear(C, F, bias=False)
        self.down_proj = nn.Linear(F, C, bias=False)

    def __call__(self, x):
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: x (B, T, C) float32 → (B, T, C)."""

    def __init__(self, args):
        super().__init__()
        self.mixer_norm = nn.RMSNorm(args.n_embd, args.norm_eps)
        self.mixer = Retention(args)
        self.mlp_norm = nn.RMSNorm(args.n_embd, args.norm_eps)
        self.mlp = MLP(args)

    def __call__(self, x, dtype, positions, powers, cache):
        x = x + self.mixer(self.mixer_norm(x).astype(dtype), positions, powers, cache)
        return x + self.mlp(self.mlp_norm(x).astype(dtype))


class Model(nn.Module):
    """inputs (B, T) → logits (B, T, V)."""

    def __init__(self, args):
        super().__init__()
        self.args, self.model_type = args, args.model_type
        self.embed = nn.Embedding(args.vocab_size, args.n_embd)
        self.layers = [Block(args) for _ in range(args.n_layer)]
        self.norm = nn.RMSNorm(args.n_embd, args.norm_eps)
        if not args.tie_embeddings:
            self.lm_head = nn.Linear(args.n_embd, args.vocab_size, bias=False)
        gammas = [1 - 2.0 ** (-5 - head) for head in range(args.n_head)]
        self._powers = mx.array([[gamma**n for n in range(CHUNK + 1)] for gamma in gammas])
        pairs = args.n_embd // args.n_head // 2
        turns = [10000.0 ** (-i / max(pairs - 1, 1)) / (2 * math.pi) for i in range(pairs)]
        self._turns = mx.array([int(turn * 2.0**64) for turn in turns], mx.uint64)

    def __call__(self, inputs, cache=None):
        cache = cache or [None] * self.args.n_layer
        positions, x = self.positions(inputs, cache[0]), self.embed(inputs)
        dtype = x.dtype
        x = x.astype(mx.float32) * (self.args.n_embd**0.5 if self.args.embed_scale else 1)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer(x, dtype, positions, self._powers, layer_cache)
        x = self.norm(x).astype(dtype)
        return self.embed.as_linear(x) if self.args.tie_embeddings else self.lm_head(x)

    def positions(self, inputs, cache):
        """cos and sin (B, 1, T, dk/2); how many tokens of `inputs` that count there are up to each,
        (B or 1, T); and which these are, (B, T) bool, None for all."""
        B, T = inputs.shape
        start = mask = None
        if cache is not None:
            start, mask = cache[1], cache.make_mask(T)
        place = mx.arange(1, T + 1)[None] if mask is None else mask.astype(mx.int32).cumsum(1)
        read = place if start is None else place + start[:, None]
        if cache is not None:
            cache[1] = mx.broadcast_to(read[:, -1], (B,))  # tokens read, in each row
        # Whole turns overflow 64 bits: what is left of them is exact, however far the position
        phase = (read - 1).astype(mx.uint64)[:, None, :, None] * self._turns
        angle = (phase >> 40).astype(mx.float32) * (2 * math.pi / 2**24)
        return mx.cos(angle), mx.sin(angle), place, mask

    def make_cache(self):
        """S for each layer; besides, for the first, how many tokens were read."""
        return [ArraysCache(1 if i else 2) for i in range(self.args.n_layer)]
