"""What every architecture of this panel uses: precision, norms, RoPE, dropout, recomputation."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

_GOLDEN, _MIX1, _MIX2 = -1640531527, 2146121005, -2073254261  # odd; as signed 32-bit numbers


def upcast(x):
    """x in at least float32: where norms, softmax and losses are computed."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def unset(*shape):
    """A parameter that gets its numbers from outside."""
    return nn.Parameter(torch.empty(shape))


def lasting(make):
    """`make`, whose tables outlive the decoding that first asked for them: training can use them,
    as it could not use tensors made in inference mode."""
    return torch.inference_mode(False)(make)


def recompute(layer, *args):
    """layer(*args), whose activations are computed again in the backward pass."""
    return checkpoint(layer, *args, use_reentrant=False)


def product(x, weight, bias=None):
    """x Wᵀ + b. On a CPU PyTorch leaves the product of one row to a single core, which cannot read
    as fast as all of them: so the rows of W are cut into a piece for each."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() == x.shape[-1]:
        cores = torch.get_num_threads()
        if len(weight) % cores == 0:
            pieces = weight.view(cores, -1, x.shape[-1])
            y = torch.bmm(x.reshape(1, 1, -1).expand(cores, 1, -1), pieces.mT)
            y = y.view(*x.shape[:-1], -1)
            return y if bias is None else y + bias
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """x Wᵀ + b in the dtype of x; the parameters stay in float32."""

    def reset_parameters(self):
        """Weights are the spec's."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return product(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Embedding):
    """A table of rows that are looked up, and the head that is tied to it."""

    def reset_parameters(self):
        """Weights are the spec's."""

    def as_linear(self, x):
        return product(x, self.weight.to(x.dtype))


class LayerNorm(nn.Module):
    """(x − mean)/√(variance + eps)·weight + bias, in at least float32."""

    def __init__(self, dims, eps):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dims)), nn.Parameter(torch.zeros(dims))
        self.eps = eps

    def forward(self, x):
        return F.layer_norm(upcast(x), x.shape[-1:], self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x/√(mean x² + eps)·weight, in at least float32."""

    def __init__(self, dims, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dims)), eps

    def forward(self, x):
        return F.rms_norm(upcast(x), x.shape[-1:], self.weight, self.eps)


class Rotary(nn.Module):
    """RoPE on the halves of x (B, H, T, D), with cos and sin (T, D/2) in at least float32."""

    def forward(self, x, cos, sin):
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


class PairRotary(nn.Module):
    """RoPE on adjacent pairs of x (B, H, T, D), with cos and sin (T, D/2) in at least float32."""

    def forward(self, x, cos, sin):
        even, odd = x[..., 0::2], x[..., 1::2]
        pairs = (even * cos - odd * sin, odd * cos + even * sin)
        return torch.stack(pairs, dim=-1).reshape(x.shape)


class RotaryTable:
    """cos and sin of `angles(start, T)`, (T, D/2), kept for all positions seen so far."""

    def __init__(self, angles):
        self.angles, self.cos, self.sin = angles, None, None

    @lasting
    def __call__(self, start, T, like):
        """In the dtype and on the device of `like`."""
        end = start + T
        if self.cos is None or end > len(self.cos):
            angle = torch.from_numpy(self.angles(0, -(-end // 1024) * 1024))
            self.cos, self.sin = torch.cos(angle).to(like), torch.sin(angle).to(like)
        return self.cos[start:end], self.sin[start:end]


def times(a, b):
    """a·b modulo 2³², int32; compiled C++ leaves undefined what a signed overflow gives."""
    return (a.long() * b).int() if torch.compiler.is_compiling() else a * b


def mix(x):
    """Scramble 32-bit integers (the xorshift-multiply rounds of Wellons' lowbias32)."""
    x = times(x ^ ((x >> 16) & 0xFFFF), _MIX1)
    x = times(x ^ ((x >> 15) & 0x1FFFF), _MIX2)
    return x ^ ((x >> 16) & 0xFFFF)


def fold(key, number):
    """A new stream of dropout keys for layer `number`; None (no dropout) stays None."""
    return None if key is None else mix(times(key, _GOLDEN) + number)


def dropout(x, p, key, batch_axis=0):
    """Zero a share `p` of x (..., N) and scale the rest; key (B,) int32, or None for x itself.

    The mask is a pure function of (key, place): element n of a row is kept where the 32-bit
    product of an odd number drawn for the row and one fixed for n is above a threshold. So both
    panels drop the same elements, and a batch can be split in any way.
    """
    if key is None or p == 0:
        return x
    row, column, least = dropout_words(x.shape, p, key, batch_axis)
    return torch.where(times(row[..., None], column) >= least, x * (1 / (1 - p)), 0)


def dropout_words(shape, p, key, batch_axis=0):
    """(row, column, least): x (..., N) is kept where row[..., None] * column >= least."""
    rows = list(shape[:-1])
    rows[batch_axis] = 1
    place = torch.arange(math.prod(rows), dtype=torch.int32, device=key.device)
    key = key.reshape([-1] + [1] * (len(rows) - 1 - batch_axis))
    row = mix(mix(place.reshape(rows)) + key) | 1
    column = mix(torch.arange(1, shape[-1] + 1, dtype=torch.int32, device=key.device)) | 1
    return row, column, round(p * 2**32) - 2**31


def noise(like, key):
    """Numbers of mean 0 and variance 1 in the shape (B, ...) and dtype of `like`, nearly normal:
    sums of four uniform ones. Like dropout's mask a pure function of (key, place)."""
    place = torch.arange(math.prod(like.shape[1:]), dtype=torch.int32, device=key.device)
    key = key.reshape([-1] + [1] * (len(like.shape) - 1))
    word = mix(mix(place.reshape(1, *like.shape[1:])) + key)
    halves = [(w >> bits) & 0xFFFF for w in (word, mix(word)) for bits in (0, 16)]
    return (sum(halves) - 2 * 0xFFFF).to(like.dtype) * (3**0.5 / 2**16)
