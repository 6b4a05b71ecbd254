"""What every architecture of this panel uses: precision, norms, RoPE, dropout, recomputation."""

import math
import os
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_models import openblas

LARGE = 4096  # numbers
_GOLDEN, _MIX1, _MIX2 = -1640531527, 2146121005, -2073254261  # odd; as signed 32-bit numbers


def upcast(x):
    """x in at least float32: where norms, softmax and losses are computed."""
    return x if x.dtype == mx.float64 else x.astype(mx.float32)


def exp(x):
    """eˣ. MLX's CPU takes 12 ns for its exp of a number in float32, 5 for a power."""
    return power_of_e(x) if by_power(x) else mx.exp(x)


@mx.custom_function
def power_of_e(x):
    return mx.power(2.0, x * math.log2(math.e))


@power_of_e.vjp
def _power_of_e_backward(x, grad, power):
    return grad * power


def sigmoid(x):
    """1/(1 + e⁻ˣ), of float32 by that exp; a larger one would make 0·∞ of a gradient."""
    return 1 / (1 + exp(mx.minimum(-x, 80.0))) if by_power(x) else mx.sigmoid(x)


def silu(x):
    """x/(1 + e⁻ˣ), the like."""
    return x / (1 + exp(mx.minimum(-x, 80.0))) if by_power(x) else nn.silu(x)


def by_power(x):
    """Where it pays: an operation more costs as much as some hundred numbers."""
    return x.size >= LARGE and x.dtype == mx.float32 and mx.default_device() == mx.cpu


def total(x):
    """The sum of all of x, piece by piece: MLX's CPU adds one number after the other, and of
    eight million squares loses the second digit."""
    x = x.flatten()
    while x.size > 32:
        cut = x.size % 32
        x = mx.concatenate([x[cut:].reshape(-1, 32).sum(-1), x[:cut]])
    return x.sum()


def function(cls):
    """What `cls.forward` gives and `cls.backward` differentiates."""
    made = mx.custom_function(cls.forward)
    made.vjp(cls.backward)
    return made


def unset(*shape):
    """A parameter that gets its numbers from outside."""
    return mx.zeros(shape)


def recompute(layer, *args):
    """layer(*args), whose activations are computed again in the backward pass."""
    return nn.utils.checkpoint(layer)(*args)


def side_by_side(pieces):
    """Streams for `pieces` of work that can be done at the same time. MLX's CPU computes on one
    thread a stream, but for products: so it gets one for each core, whose products stay on that
    core until the next `settle`."""
    cores = os.cpu_count()
    if mx.default_device() != mx.cpu or openblas is None or cores > pieces:
        return [mx.default_stream(mx.default_device())]
    openblas.openblas_set_num_threads(1)
    return _streams(cores)


@cache
def _streams(count):
    return [mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in range(1, count))]


def settle(arrays):
    """Begin to compute `arrays`. On the CPU, where all that is queued has its memory already, wait
    for them, so that the next arrays find room."""
    if mx.default_device() != mx.cpu:
        return mx.async_eval(arrays)
    mx.eval(arrays)
    if openblas:
        openblas.openblas_set_num_threads(os.cpu_count())


def begin(x):
    """x, which the CPU begins to compute while what follows is still being written down."""
    if mx.default_device() == mx.cpu:
        mx.async_eval(x)
    return x


def pieces(x, size, axis):
    """x cut along an axis, by halves: the gradient of many slices is as many arrays of x's size."""
    count = -(-x.shape[axis] // size)
    if count == 1:
        return [x]
    first, last = mx.split(x, [count // 2 * size], axis)
    return pieces(first, size, axis) + pieces(last, size, axis)


def choose(good, new, old):
    """`new` where the one boolean `good` is true, else `old`. The CPU, whose `where` is slow, has
    nothing to wait for."""
    if mx.default_device() == mx.cpu:
        return new if good.item() else old
    return mx.where(good, new, old)


class Linear(nn.Linear):
    """x Wᵀ + b in the dtype of x; the parameters stay in float32."""

    def __call__(self, x):
        weight = self.weight.astype(x.dtype).T
        return mx.addmm(self.bias.astype(x.dtype), x, weight) if "bias" in self else x @ weight


class Embedding(nn.Embedding):
    """A table of rows that are looked up, and the head that is tied to it."""

    def as_linear(self, x):
        return x @ self.weight.astype(x.dtype).T


class LayerNorm(nn.Module):
    """(x − mean)/√(variance + eps)·weight + bias, in at least float32."""

    def __init__(self, dims, eps):
        super().__init__()
        self.weight, self.bias, self.eps = mx.ones(dims), mx.zeros(dims), eps

    def __call__(self, x):
        return mx.fast.layer_norm(upcast(x), self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x/√(mean x² + eps)·weight, in at least float32."""

    def __init__(self, dims, eps):
        super().__init__()
        self.weight, self.eps = mx.ones(dims), eps

    def __call__(self, x):
        return mx.fast.rms_norm(upcast(x), self.weight, self.eps)


class Rotary(nn.Module):
    """RoPE on the halves of x (B, H, T, D), with cos and sin (T, D/2) in at least float32."""

    def __call__(self, x, cos, sin):
        x1, x2 = mx.split(x, 2, axis=-1)
        return mx.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


class PairRotary(nn.Module):
    """RoPE on adjacent pairs of x (B, H, T, D), with cos and sin (T, D/2) in at least float32."""

    def __call__(self, x, cos, sin):
        even, odd = x[..., 0::2], x[..., 1::2]
        pairs = (even * cos - odd * sin, odd * cos + even * sin)
        return mx.stack(pairs, axis=-1).reshape(x.shape)


class RotaryTable:
    """cos and sin of `angles(start, T)`, (T, D/2), kept for all positions seen so far."""

    def __init__(self, angles):
        self.angles, self.cos, self.sin = angles, None, None

    def __call__(self, start, T):
        end = start + T
        if self.cos is None or end > len(self.cos):
            angle = self.angles(0, -(-end // 1024) * 1024)
            self.cos, self.sin = (mx.array(f(angle).astype(np.float32)) for f in (np.cos, np.sin))
        return self.cos[start:end], self.sin[start:end]


def mix(x):
    """Scramble 32-bit integers (the xorshift-multiply rounds of Wellons' lowbias32)."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * _MIX1
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _MIX2
    return x ^ ((x >> 16) & 0xFFFF)


def fold(key, number):
    """A new stream of dropout keys for layer `number`; None (no dropout) stays None."""
    return None if key is None else mix(key * _GOLDEN + number)


def dropout(x, p, key, batch_axis=0):
    """Zero a share `p` of x (..., N) and scale the rest; key (B,) int32, or None for x itself.

    The mask is a pure function of (key, place): element n of a row is kept where the 32-bit
    product of an odd number drawn for the row and one fixed for n is above a threshold. So both
    panels drop the same elements, and a batch can be split in any way.
    """
    if key is None or p == 0:
        return x
    row, column, least = dropout_words(x.shape, p, key, batch_axis)
    return (row[..., None] * column >= least) * (x * (1 / (1 - p)))  # `where` is slow on a CPU


def dropout_words(shape, p, key, batch_axis=0):
    """(row, column, least): x (..., N) is kept where row[..., None] * column >= least."""
    rows = list(shape[:-1])
    rows[batch_axis] = 1
    place = mx.arange(math.prod(rows), dtype=mx.int32)
    key = key.reshape([-1] + [1] * (len(rows) - 1 - batch_axis))
    row = mix(mix(place.reshape(rows)) + key) | 1
    column = mix(mx.arange(1, shape[-1] + 1, dtype=mx.int32)) | 1
    return row, column, round(p * 2**32) - 2**31


def noise(like, key):
    """Numbers of mean 0 and variance 1 in the shape (B, ...) and dtype of `like`, nearly normal:
    sums of four uniform ones. Like dropout's mask a pure function of (key, place)."""
    place = mx.arange(math.prod(like.shape[1:]), dtype=mx.int32)
    key = key.reshape([-1] + [1] * (len(like.shape) - 1))
    word = mix(mix(place.reshape(1, *like.shape[1:])) + key)
    halves = [(w >> bits) & 0xFFFF for w in (word, mix(word)) for bits in (0, 16)]
    return (sum(halves) - 2 * 0xFFFF).astype(like.dtype) * (3**0.5 / 2**16)
