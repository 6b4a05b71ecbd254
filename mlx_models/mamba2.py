"""mamba2 in MLX: see specs/mamba2.py for the equations; the twin is torch_models/mamba2.py.

B batch, T time, C width, H heads of P channels, G groups of R heads, N state, V vocabulary;
K chunks of Q tokens. Products take `dtype` inputs; the convolution, time steps, decays, the state
and all products with it, norms, the residual stream and logits are in at least float32.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.core import clip, cumsum, split, zeros_like
from mlx.core import concatenate as cat
from mlx.nn import softplus

from mlx_models.cache import ConstantCache
from mlx_models.layers import Linear, RMSNorm, dropout, exp, silu, unset, upcast
from mlx_models.mamba2_fast import by_head
from mlx_models.model import LanguageModel
from mlx_models.shortconv import short_conv

GRAIN = 2.0**-9  # sums of up to 2²⁴ of these are exact in float32
FORGOTTEN = -128.0  # exp of it is zero in float32


def segment_sums(x):
    """Σ_{s<i≤t} x_i of x (..., Q) ≤ 0, for s ≤ t; −inf for s > t: (..., Q, Q).

    Differences of cumulative sums, which are as inexact as the sums are large. So x is cut into
    whole grains, whose sums are exact, and rests that stay small.
    """
    x = clip(x, FORGOTTEN, None)
    whole = mx.round(mx.stop_gradient(x) / GRAIN) * GRAIN
    whole, rest = cumsum(whole, -1), cumsum(x - whole, -1)
    after = mx.triu(mx.full((x.shape[-1], x.shape[-1]), -mx.inf), 1)
    sums = whole[..., :, None] - whole[..., None, :] + (rest[..., :, None] - rest[..., None, :])
    return sums + after


def pad(x, axis, before, after):
    """x with zeros around it along one axis."""
    return mx.pad(x, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)])


class GatedNorm(nn.Module):
    """RMSNorm of y ⊙ silu(z), each of the groups of its channels by itself."""

    def __init__(self, dims, groups, eps):
        super().__init__()
        self.weight, self.groups, self.eps = mx.ones(dims), groups, eps

    def __call__(self, y, z):
        h = upcast(y) * silu(upcast(z))
        parts = h.reshape(*h.shape[:-1], self.groups, -1)
        return mx.fast.rms_norm(parts, None, self.eps).reshape(h.shape) * self.weight


class StateSpace(nn.Module):
    """The selective state space of x (B, T, C), in three forms that are one function:

        form(u, da, b, c, state) → (y, state after the last token)

    u (B, T, H, P) is Δu; da (B, T, H) is Δa, in at least float32; b and c are (B, T, G, N), the
    state (B, H, P, N), None for zero; y (B, T, H, P) in at least float32, without D u.
    """

    def __init__(self, spec):
        super().__init__()
        C, di, H, wide = spec.n_embd, spec.inner, spec.heads, spec.conv_width
        self.inner, self.n_head, self.groups, self.d_state = di, H, spec.n_groups, spec.d_state
        self.limit, self.chunk_length = spec.time_step_limit, spec.chunk_length
        self.in_proj = Linear(C, di + wide + H, bias=False)
        self.conv_weight = unset(wide, spec.d_conv)
        self.conv_bias = unset(wide)
        self.dt_bias, self.A_log, self.D = (unset(H) for _ in range(3))
        self.norm = GatedNorm(di, spec.n_groups, spec.norm_eps)
        self.out_proj = Linear(di, C, bias=False)

    def __call__(self, x, cache=None):
        B, T, _ = x.shape
        di, H = self.inner, self.n_head
        inputs, state = (None, None) if cache is None else (cache.get("inputs"), cache.get("state"))
        z, w, dt = split(self.in_proj(x), (di, di + len(self.conv_bias)), -1)
        w, inputs = short_conv(w, self.conv_weight, self.conv_bias, inputs)
        w = silu(w).astype(x.dtype)
        u, b, c = split(w, (di, di + self.groups * self.d_state), -1)
        u, (b, c) = u.reshape(B, T, H, -1), (a.reshape(B, T, self.groups, -1) for a in (b, c))
        dt = clip(softplus(upcast(dt) + self.dt_bias), *self.limit)
        form = self.step if cache is not None and T == 1 else self.chunked
        y, state = form(by_head(upcast(u), dt), -exp(self.A_log) * dt, b, c, state)
        y = y + self.D[:, None] * u
        if cache is not None:
            cache.put(T, inputs=inputs, state=state)
        return self.out_proj(self.norm(y.reshape(B, T, -1), z).astype(x.dtype))

    def chunked(self, u, da, b, c, state=None):
        """All pairs inside a chunk, a state between chunks (Dao & Gu, section 6)."""
        B, T, H, P = u.shape
        G, N = b.shape[2:]
        Q = self.chunk_length(T)
        K = -(-T // Q)
        dtype = b.dtype
        # Tokens that fill the last chunk decay nothing and add nothing
        u, da, b, c = (pad(a, 1, 0, K * Q - T) for a in (u, da, b, c))
        b, c = (a.reshape(B, K, Q, G, N).swapaxes(2, 3) for a in (b, c))  # (B, K, G, Q, N)
        u, da = u.reshape(B, K, Q, H, P), da.reshape(B, K, Q, H).swapaxes(2, 3)
        decay = exp(segment_sums(da))  # (B, K, H, Q, Q)
        scores = upcast(c @ b.swapaxes(-1, -2))[:, :, :, None]  # (B, K, G, 1, Q, Q)
        scores = (scores * decay.reshape(B, K, G, -1, Q, Q)).reshape(decay.shape).astype(dtype)
        y = upcast(scores @ u.astype(dtype).swapaxes(2, 3)).swapaxes(2, 3)  # (B, K, Q, H, P)
        # What each chunk adds to the state, and the state that it finds
        late = by_head(u, decay[..., -1, :].swapaxes(2, 3))
        late = late.reshape(B, K, Q, G, -1).swapaxes(2, 3)  # (B, K, G, Q, R·P)
        states = (late.swapaxes(-1, -2) @ upcast(b)).reshape(B, K, H, P * N).swapaxes(1, 2)
        if state is None:
            state = zeros_like(states[:, :, 0])
        states = cat((state.reshape(B, H, 1, -1), states), 2)
        total = da.sum(-1).swapaxes(1, 2)  # (B, H, K)
        kept = exp(segment_sums(pad(total, 2, 1, 0)))  # (B, H, K + 1, K + 1)
        found = (kept[:, :, :-1] @ states).swapaxes(1, 2).reshape(B, K, G, -1, N)
        read = (upcast(c) @ found.swapaxes(-1, -2)).swapaxes(2, 3).reshape(u.shape)
        y = y + by_head(read, exp(cumsum(da, -1)).swapaxes(2, 3))
        return y.reshape(B, K * Q, H, P)[:, :T], (kept[:, :, -1:] @ states).reshape(B, H, P, N)

    def recurrent(self, u, da, b, c, state=None):
        """One token after the other."""
        outputs = []
        for t in range(u.shape[1]):
            y, state = self.step(*(a[:, t : t + 1] for a in (u, da, b, c)), state)
            outputs.append(y)
        return cat(outputs, 1), state

    def step(self, u, da, b, c, state=None):
        """A single token, T = 1."""
        B, _, H, P = u.shape
        G, N = b.shape[2:]
        u, b, c = (upcast(a).reshape(B, G, -1, a.shape[-1]) for a in (u, b, c))
        added = u.reshape(B, G, -1, 1) * b  # (B, G, R·P, N)
        if state is not None:
            decay = exp(da).reshape(B, H, 1, 1)
            added = added + (decay * state).reshape(B, G, -1, N)
        y = added @ c.swapaxes(-1, -2)
        return y.reshape(B, 1, H, P), added.reshape(B, H, P, N)


class Block(nn.Module):
    """One layer: x (B, T, C) → (B, T, C)."""

    def __init__(self, spec, dtype):
        super().__init__()
        self.dropout, self.dtype = spec.dropout, dtype
        self.mixer_norm = RMSNorm(spec.n_embd, spec.norm_eps)
        self.mixer = StateSpace(spec)

    def __call__(self, x, key=None, cache=None):
        h = self.mixer(self.mixer_norm(x).astype(self.dtype), cache)
        return x + dropout(h, self.dropout, key)


class Model(LanguageModel):
    """The frame with states of constant size."""

    def block(self, i):
        return Block(self.spec, self.dtype)

    def new_cache(self):
        return ConstantCache()
