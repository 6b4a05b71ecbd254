"""toeplitz in MLX: see specs/toeplitz.py for the equations; the twin is torch_models/toeplitz.py.

B batch, T time, C width, H heads of D channels, V vocabulary. Products take `dtype` inputs;
kernels, their sums, the spectra of a long text, norms, the residual stream and logits are in
at least float32.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.core import cumsum
from mlx.nn import softplus

from mlx_models import gpt
from mlx_models.layers import Linear, dropout, unset, upcast
from mlx_models.longconv import long_conv
from mlx_models.model import LanguageModel
from mlx_models.online import CONVS
from specs.online import KINDS

GRAIN = 2.0**-8  # sums of up to 2²⁴ of these are exact in float32


def running_sums(a):
    """Σ_{k ≤ t} a[k] of a (H, T), rounded once: where they cross zero, more would show. So a
    is cut into whole grains, whose sums are exact, and rests that stay small."""
    whole = mx.round(mx.stop_gradient(a) / GRAIN) * GRAIN
    return cumsum(whole, 1) + cumsum(a - whole, 1)


def by_token(numbers):
    """(H, T) → (T, H, 1): the same for all channels of a head."""
    return numbers.T[..., None]


class Mix(nn.Module):
    """What every token takes from those before it and from itself: u (B, T, H, D), a (H, T) →
    (B, T, H, D) in at least float32. `heads` says how: all at once, or one after the other."""

    def __init__(self, spec):
        super().__init__()
        self.n_head, self.do_toep_mean = spec.n_head, spec.do_toep_mean
        self.heads = self.parallel

    def __call__(self, u, a):
        y = upcast(self.heads(u, a))
        return y / by_token(running_sums(a)) if self.do_toep_mean else y

    def parallel(self, u, a):
        return long_conv(u, a)

    def sequential(self, u, a):
        heads = [long_conv(u[:, :, h : h + 1], a[h : h + 1]) for h in range(self.n_head)]
        return mx.concatenate(heads, axis=2)


class Mixer(nn.Module):
    """Toeplitz mixing of x (B, T, C), whose first token is the `start`-th, behind what the cache
    holds."""

    def __init__(self, spec):
        super().__init__()
        C, H = spec.n_embd, spec.n_head
        self.n_head, self.positive = H, spec.kernel == "softplus"
        self.do_toep_mean, self.do_toep_proj = spec.do_toep_mean, spec.do_toep_proj
        if spec.do_toep_proj:
            self.in_proj = Linear(C, C)
            self.out_proj = Linear(C, C, bias=False)
        self.mix = Mix(spec)
        self.kernel = unset(H, spec.block_size)
        self.kernel_bias = unset(H, spec.block_size)

    def __call__(self, x, start, cache=None):
        u = self.in_proj(x) if self.do_toep_proj else x
        u = u.reshape(*x.shape[:2], self.n_head, -1)  # (B, T, H, D)
        now = slice(start, start + x.shape[1])
        if cache is None:
            y = self.mix(u, self.weights(now.stop))
        else:
            y = upcast(cache(u, self.weights))
            if self.do_toep_mean:
                y = y / by_token(cache.kernel.once(running_sums)[:, now])
        y = (y + by_token(self.kernel_bias[:, now])).astype(x.dtype).flatten(2)
        return self.out_proj(y) if self.do_toep_proj else y

    def weights(self, count=None):
        """a (H, count) for the `count` least distances, or for all."""
        kernel = self.kernel[:, :count]
        return softplus(kernel) if self.positive else kernel


class MLP(gpt.MLP):
    """Two matrices and gelu_tanh, with dropout between them: x (B, T, C) → (B, T, C)."""

    def __init__(self, spec):
        super().__init__(spec)
        self.dropout = spec.dropout

    def __call__(self, x, key=None):
        h = self.activation(self.up_proj(x))
        return self.down_proj(dropout(h, self.dropout, key))


class Block(gpt.Block):
    """One layer: x (B, T, C) → (B, T, C)."""

    def __call__(self, x, start, key=None, cache=None):
        x = x + self.mixer(self.mixer_norm(x).astype(self.dtype), start, cache)
        return x + self.mlp(self.mlp_norm(x).astype(self.dtype), key)


class Model(LanguageModel):
    """The frame without dropout of what it looks up."""

    def block(self, i):
        return Block(self.spec, self.dtype, Mixer(self.spec), MLP(self.spec))

    def enter(self, tokens, cache, key):
        return super().enter(tokens, cache, None)

    def context(self, tokens, start, cache):
        """(the position of the first token,)."""
        return (start,)

    def make_cache(self, batch_size=1, length=None, kind="auto"):
        """One cache a layer: "cache" or "online"."""
        kind = KINDS[-1] if kind == "auto" else kind
        self.spec.check_decode_kind(kind)
        return [self.new_cache(kind) for _ in self.layers]

    def new_cache(self, kind="online"):
        return CONVS[kind](self.spec.block_size)
