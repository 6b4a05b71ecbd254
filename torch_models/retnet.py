"""retnet in PyTorch: see specs/retnet.py for the equations; the twin is mlx_models/retnet.py.

B batch, T time, C width, H heads, dk and dv their sizes of keys and of values, Q tokens of a
chunk, n chunks, V vocabulary. Products take `dtype` inputs; norms, rotation, states, the residual
stream and logits are in at least float32. MLP is gpt's.
"""

import torch
import torch.nn.functional as F
from torch import cat, nn
from torch.nn.functional import silu

from specs.retnet import HEAD_EPS
from torch_models import gpt
from torch_models.cache import ConstantCache
from torch_models.layers import Linear, PairRotary, RotaryTable, dropout, fold, lasting, upcast
from torch_models.model import LanguageModel


class HeadNorm(nn.Module):
    """x/√(mean x² + eps) for x (B, H, T, dv), in at least float32."""

    def forward(self, x):
        return F.rms_norm(upcast(x), x.shape[-1:], None, HEAD_EPS)


class Retention(nn.Module):
    """Retention of x (B, T, C), gated, behind what the cache holds.

    The forms take q and k (B, H, T, dk), v (B, H, T, dv) and powers of γ: `within` a chunk
    (H, Q+1, Q+1), γ^(i−j) for j ≤ i and 0 above the diagonal, and `between` n chunks (H, n+1, n+1),
    γ^(Q·(i−j)) alike; None for one. A state S (B, H, dk, dv) stands for all earlier tokens, None
    for none.
    """

    def __init__(self, spec):
        super().__init__()
        C, inner = spec.n_embd, spec.n_head * spec.value_size
        self.n_head, self.scale = spec.n_head, spec.key_size**-0.5
        self.q_proj = Linear(C, C, bias=False)
        self.k_proj = Linear(C, C, bias=False)
        self.v_proj = Linear(C, inner, bias=False)
        self.g_proj = Linear(C, inner, bias=False)
        self.o_proj = Linear(inner, C, bias=False)
        self.rotary = PairRotary()
        self.head_norm = HeadNorm()

    def forward(self, x, cos, sin, within, between, cache=None):
        q, k, v = (self.heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q = self.rotary(q, cos, sin).to(x.dtype)
        k = self.rotary(k, cos * self.scale, sin * self.scale).to(x.dtype)
        o = self.retain(q, k, v, within, between, cache)
        y = self.head_norm(o).to(x.dtype)
        y = y.swapaxes(1, 2).reshape(*x.shape[:2], -1)
        return self.o_proj(y * silu(self.g_proj(x)))

    def heads(self, y):
        return y.reshape(*y.shape[:2], self.n_head, -1).swapaxes(1, 2)

    def retain(self, q, k, v, within, between, cache):
        """The form that costs least: o (B, H, T, dv)."""
        state = None if cache is None else cache.get("state")
        if state is None:
            q = self.sure(q, k)
        if cache is None and between is None:
            return self.parallel(q, k, v, within)
        if q.shape[2] == 1:
            o, state = self.step(q, k, v, within, state)
        else:
            o, state = self.chunkwise(q, k, v, within, between, state)
        if cache is not None:
            cache.put(q.shape[2], state=state)
        return o

    def sure(self, q, k):
        """q with ±sign(k) for its first row. A text's first token sees itself alone, and only the
        sign of its score passes the head norm: the score's gradient is zero, but computed it is
        rounding over the score, which may be as small as it likes. Now the score is ±Σ|k|."""
        q_0, k_0 = q[:, :, :1], k[:, :, :1]
        first = (torch.sign(q_0 @ k_0.swapaxes(-1, -2)) * torch.sign(k_0)).detach()
        return cat((first, q[:, :, 1:]), 2)

    def parallel(self, q, k, v, within):
        """All pairs of T = Q tokens."""
        return (q @ k.swapaxes(-1, -2) * within[..., :-1, :-1].to(q.dtype)) @ v

    def chunkwise(self, q, k, v, within, between, state=None):
        """Parallel inside a chunk, recurrent between chunks: (output, state after them).

        T = n·Q tokens and fewer than Q more, which are a chunk by themselves.
        """
        Q = within.shape[-1] - 1
        between = within[:, ::Q, ::Q] if between is None else between
        n = between.shape[-1] - 1
        rest = q.shape[2] - n * Q
        if rest:
            q_r, k_r, v_r = (y[:, :, n * Q :] for y in (q, k, v))
        q, k, v = (y[:, :, : n * Q].reshape(*y.shape[:2], n, Q, -1) for y in (q, k, v))
        decay = within[:, None].to(q.dtype)  # (H, 1, Q+1, Q+1)
        new = upcast((k * decay[..., -2, :-1, None]).swapaxes(-1, -2) @ v)  # (B, H, n, dk, dv)
        old = torch.zeros_like(new[:, :, :1]) if state is None else state[:, :, None]
        states = self.pass_on(cat((old, new), 2), between)
        before, state = states[:, :, :-1], states[:, :, -1]
        read = (q * decay[..., 1:, :1]) @ before.to(q.dtype)
        o = (self.parallel(q, k, v, decay) + read).flatten(2, 3)
        if rest:
            short = within[:, : rest + 1, : rest + 1]
            o_r, state = self.chunkwise(q_r, k_r, v_r, short, None, state)
            o = cat((o, o_r), 2)
        return o, state

    def pass_on(self, parts, between):
        """States (B, H, n+1, dk, dv) before each chunk and after the last from what was there
        before all and what each of them adds."""
        return (between @ parts.flatten(3)).reshape(parts.shape)

    def recurrent(self, q, k, v, within, state=None):
        """One token after the other: (output, state after them)."""
        outputs = []
        for t in range(q.shape[2]):
            now = slice(t, t + 1)
            o, state = self.step(q[:, :, now], k[:, :, now], v[:, :, now], within, state)
            outputs.append(o)
        return cat(outputs, 2), state

    def step(self, q, k, v, within, state):
        """One token, T = 1, which sees itself: (output, state after it)."""
        new = upcast(k).swapaxes(-1, -2) * upcast(v)
        state = new if state is None else within[:, 1:2, :1] * state + new
        return upcast(q) @ state, state


class Block(gpt.Block):
    """One layer: x (B, T, C) → (B, T, C)."""

    def forward(self, x, cos, sin, within, between, key=None, cache=None):
        h = self.mixer(self.mixer_norm(x).to(self.dtype), cos, sin, within, between, cache)
        x = x + dropout(h, self.dropout, fold(key, 0))
        h = self.mlp(self.mlp_norm(x).to(self.dtype))
        return x + dropout(h, self.dropout, fold(key, 1))


class Model(LanguageModel):
    """The frame with rotary positions and powers of γ for all layers."""

    def __init__(self, spec, dtype=torch.float32):
        super().__init__(spec, dtype)
        self._rotary, self._decays = RotaryTable(spec.rotary), (None, None)

    def block(self, i):
        return Block(self.spec, self.dtype, Retention(self.spec), gpt.MLP(self.spec))

    def new_cache(self):
        return ConstantCache()

    def embedded(self, tokens, start):
        x = super().embedded(tokens, start)
        return x * self.spec.n_embd**0.5 if self.spec.embed_scale else x

    def context(self, tokens, start, cache):
        """(cos, sin, within, between): see `RotaryTable` and `Retention`."""
        T = tokens.shape[1]
        return *self._rotary(start, T, self.embed.weight), *self.decays(T)

    @lasting
    def decays(self, T):
        """Powers of γ for T tokens, computed once for repeated calls."""
        if self._decays[0] != T:
            Q = self.spec.chunk(T)
            tables = self.spec.decay(Q), self.spec.decay(T // Q, Q)
            within, between = (torch.from_numpy(t).to(self.embed.weight) for t in tables)
            self._decays = T, (within, None if Q == T else between)
        return self._decays[1]
