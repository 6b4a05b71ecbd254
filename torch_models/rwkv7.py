"""rwkv7 in PyTorch: see specs/rwkv7.py for the equations; the twin is mlx_models/rwkv7.py.

B batch, T time, C width, H heads, D head size, F mlp width, V vocabulary; Q tokens a chunk, N
chunks. Products with weights take `dtype` inputs; norms, decays, all products with the state, the
residual stream and logits are in at least float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn, sigmoid

from torch_models.cache import ConstantCache
from torch_models.layers import LayerNorm, Linear, dropout, fold, unset, upcast
from torch_models.model import LanguageModel
from torch_models.rwkv7_fast import each, in_chunks

CHUNK = 16  # tokens: their decays span at most e^(0.61·16) = 16,600
HEAD_EPS = 64e-5


def token_before(x, cache, name):
    """h⁻ of h = x (B, T, C): the token before each, of the first one what the cache holds."""
    last = None if cache is None else cache.get(name)
    last = torch.zeros_like(x[:, :1]) if last is None else like(x, last)
    return torch.cat((last, x[:, :-1]), dim=1) if x.shape[1] > 1 else last


def last_of(x):
    """A copy, which does not hold on to the tokens before it."""
    return upcast(x[:, -1:]).clone()


def like(x, y):
    return y.to(x.dtype)


def no_state(r, B, H, D):
    return r.new_zeros(B, H, D, D)


class HeadNorm(nn.Module):
    """LayerNorm of each head of x (B, T, C), with weight and bias of C entries."""

    def __init__(self, dims, head_dim):
        super().__init__()
        self.weight, self.bias = unset(dims), unset(dims)
        self.head_dim = head_dim

    def forward(self, x):
        y = x.reshape(*x.shape[:-1], -1, self.head_dim)
        y = F.layer_norm(upcast(y), y.shape[-1:], eps=HEAD_EPS).reshape(x.shape)
        return y * self.weight + self.bias


class TimeMix(nn.Module):
    """Mixes x (B, T, C) over time; `v_first` (B, T, C) are the values of layer 0."""

    def __init__(self, spec, layer):
        super().__init__()
        C, H, D, rank = spec.n_embd, spec.heads, spec.head_dim, spec.ranks
        self.head_dim, self.first = D, layer == 0
        self.x_r, self.x_w, self.x_k = unset(C), unset(C), unset(C)
        self.x_v, self.x_a, self.x_g = unset(C), unset(C), unset(C)
        self.w0, self.w1, self.w2 = unset(C), unset(C, rank["w"]), unset(rank["w"], C)
        self.a0, self.a1, self.a2 = unset(C), unset(C, rank["a"]), unset(rank["a"], C)
        self.g1, self.g2 = unset(C, rank["g"]), unset(rank["g"], C)
        if not self.first:
            self.v0, self.v1, self.v2 = unset(C), unset(C, rank["v"]), unset(rank["v"], C)
        self.k_k, self.k_a, self.r_k = unset(C), unset(C), unset(H, D)
        self.r_proj = Linear(C, C, bias=False)
        self.k_proj = Linear(C, C, bias=False)
        self.v_proj = Linear(C, C, bias=False)
        self.o_proj = Linear(C, C, bias=False)
        self.ln_x = HeadNorm(C, D)

    def forward(self, x, v_first, cache=None):
        d = token_before(x, cache, "mixed") - x
        r, k = self.r_proj(x + d * like(x, self.x_r)), self.k_proj(x + d * like(x, self.x_k))
        r, k, v = upcast(r), upcast(k), upcast(v_first)
        w = self.adapted(x + d * like(x, self.x_w), self.w1, self.w2, torch.tanh)
        a = sigmoid(self.a0 + self.adapted(x + d * like(x, self.x_a), self.a1, self.a2))
        g = self.adapted(x + d * like(x, self.x_g), self.g1, self.g2, sigmoid)
        w = -math.exp(-0.5) * sigmoid(self.w0 + w)  # log w
        if not self.first:
            z = x + d * like(x, self.x_v)
            late = sigmoid(self.v0 + self.adapted(z, self.v1, self.v2))
            own = upcast(self.v_proj(z))
            v = own + (v - own) * late
        kappa = self.unit(k * self.k_k)
        k = k * (1 + (a - 1) * self.k_a)
        y = self.over_time(r, w, k, v, kappa, kappa * a, cache)
        if cache is not None:
            cache.put(x.shape[1], mixed=last_of(x))
        bonus = (self.heads(r * k) * self.r_k).sum(-1, keepdim=True) * self.heads(v)
        y = self.ln_x(y) + bonus.reshape(y.shape)
        return self.o_proj(like(x, y * g))

    def values_of(self, x, cache):
        """The values of layer 0, (B, T, C), from what it mixes."""
        d = token_before(x, cache, "mixed") - x
        return self.v_proj(x + d * like(x, self.x_v))

    def adapted(self, z, down, up, activation=None):
        """z through two low-rank factors (C, rank) and (rank, C), in at least float32."""
        z = z @ like(z, down)
        return upcast((z if activation is None else activation(z)) @ like(z, up))

    def heads(self, y):
        return y.reshape(*y.shape[:2], -1, self.head_dim)

    def unit(self, y):
        """Each head of y (B, T, C) divided by its length, but at least by 1e-12."""
        y = self.heads(y)
        squares = (y * y).sum(-1, keepdim=True)
        return (y * torch.rsqrt(torch.clamp(squares, min=1e-24))).flatten(2)

    def over_time(self, r, w, k, v, kappa, b, cache):
        """y (B, T, C) by the form that suits T; w are logarithms, b = κ ⊙ a."""
        inputs = r, w, k, v, kappa, b
        if cache is None:
            return self.chunkwise(*inputs)[0]
        form = self.step if r.shape[1] == 1 else self.chunkwise
        y, state = form(*inputs, cache.get("state"))
        cache.put(0, state=state)
        return y

    def chunkwise(self, r, w, k, v, kappa, b, state=None, chunk=CHUNK):
        """(y, state after them) for inputs (B, T, C) and a state (B, H, D, D), None for zero.

        See rwkv7_fast.py. What it divides by are products of a chunk's decays alone, and each
        quotient that counts is one of two of them, below 1: nothing overflows up to Q = 64.
        """
        B, T, C = r.shape
        H, D, Q = C // self.head_dim, self.head_dim, min(chunk, T)
        if T % Q:  # zeros: neither decay, nor erase, nor write
            spare = (0, 0, 0, -T % Q)
            r, w, k, v, kappa, b = (F.pad(y, spare) for y in (r, w, k, v, kappa, b))
        r, w, k, v, kappa, b = (y.reshape(B, -1, Q, C) for y in (r, w, k, v, kappa, b))
        P = torch.exp(torch.cumsum(w, dim=2))
        before = torch.cat((torch.ones_like(P[:, :, :1]), P[:, :, :-1]), dim=2)
        over, end = 1 / P, P[:, :, -1:]
        asks = self.stacked(kappa * before, r * P)  # (B, N, H, 2Q, D)
        tells = self.stacked(b * over, k * over)
        V, end = self.stacked(v), self.stacked(end).swapaxes(-1, -2)
        Z = no_state(r, B, H, D) if state is None else state
        y, Z = in_chunks(asks, tells, V, end, Z.swapaxes(-1, -2)[:, None])
        y = y.swapaxes(2, 3).reshape(B, -1, C)[:, :T]
        return y, Z[:, 0].swapaxes(-1, -2)

    def stacked(self, *parts):
        """Parts (B, N, Q, C) below each other, by heads: (B, N, H, len(parts)·Q, D)."""
        parts = [y.reshape(*y.shape[:3], -1, self.head_dim).swapaxes(2, 3) for y in parts]
        return torch.cat(parts, dim=-2)

    def recurrent(self, r, w, k, v, kappa, b, state=None):
        """The same, one token after the other."""
        outputs = []
        for inputs in each(r, w, k, v, kappa, b):
            y, state = self.step(*inputs, state)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    def step(self, r, w, k, v, kappa, b, state=None):
        """The same for one token: inputs (B, 1, C)."""
        inputs = r, w, k, v, kappa, b
        r, w, k, v, kappa, b = (y.reshape(len(y), -1, self.head_dim) for y in inputs)
        if state is None:
            state = no_state(r, *r.shape)
        gone = state @ kappa[..., None]  # (B, H, D, 1)
        state = state * torch.exp(w)[..., None, :] - gone * b[..., None, :]
        state = state + v[..., None] * k[..., None, :]
        return (state @ r[..., None]).reshape(len(r), 1, -1), state


class ChannelMix(nn.Module):
    """Two matrices with a squared ReLU between them: x (B, T, C) → (B, T, C)."""

    def __init__(self, spec):
        super().__init__()
        C, F = spec.n_embd, spec.mlp_width
        self.x_k = unset(C)
        self.up_proj = Linear(C, F, bias=False)
        self.down_proj = Linear(F, C, bias=False)

    def forward(self, x, cache=None):
        z = x + (token_before(x, cache, "fed") - x) * like(x, self.x_k)
        if cache is not None:
            cache.put(0, fed=last_of(x))
        return self.down_proj(torch.square(F.relu(self.up_proj(z))))


class Block(nn.Module):
    """One layer: x (B, T, C) → (B, T, C)."""

    def __init__(self, spec, dtype, layer):
        super().__init__()
        self.dropout, self.dtype = spec.dropout, dtype
        if layer == 0:
            self.pre_norm = LayerNorm(spec.n_embd, spec.norm_eps)
        self.mixer_norm = LayerNorm(spec.n_embd, spec.norm_eps)
        self.mixer = TimeMix(spec, layer)
        self.mlp_norm = LayerNorm(spec.n_embd, spec.norm_eps)
        self.mlp = ChannelMix(spec)

    def forward(self, x, v_first, key=None, cache=None):
        h = self.mixer(self.mixer_norm(x).to(self.dtype), v_first, cache)
        x = x + dropout(h, self.dropout, fold(key, 0))
        h = self.mlp(self.mlp_norm(x).to(self.dtype), cache)
        return x + dropout(h, self.dropout, fold(key, 1))

    def values_of(self, x, cache):
        return self.mixer.values_of(self.mixer_norm(x).to(self.dtype), cache)


class Model(LanguageModel):
    """The frame with a norm behind the embedding; all layers read the values of the first one."""

    def block(self, i):
        return Block(self.spec, self.dtype, i)

    def new_cache(self):
        return ConstantCache()

    def embedded(self, tokens, start):
        return self.layers[0].pre_norm(super().embedded(tokens, start))

    def enter(self, tokens, cache, key):
        x, context = super().enter(tokens, cache, key)
        return x, (*context, self.layers[0].values_of(x, cache and cache[0]))
