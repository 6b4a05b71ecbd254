"""What every architecture of this panel uses: precision, dropout, recomputation."""

import math
import os
from functools import cache

import mlx.core as mx
import mlx.nn as nn

from mlx_models import openblas

_GOLDEN, _MIX1, _MIX2 = -1640531527, 2146121005, -2073254261  # odd; as signed 32-bit numbers


def upcast(x):
    """x in at least float32: where norms, softmax and losses are computed."""
    return x if x.dtype == mx.float64 else x.astype(mx.float32)


def total(x):
    """The sum of all of x, piece by piece: MLX's CPU adds one number after the other, and of
    eight million squares loses the second digit."""
    x = x.flatten()
    while x.size > 32:
        cut = x.size % 32
        x = mx.concatenate([x[cut:].reshape(-1, 32).sum(-1), x[:cut]])
    return x.sum()


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
    return mx.where(row[..., None] * column >= least, x * (1 / (1 - p)), 0)


def dropout_words(shape, p, key, batch_axis=0):
    """(row, column, least): x (..., N) is kept where row[..., None] * column >= least."""
    rows = list(shape[:-1])
    rows[batch_axis] = 1
    place = mx.arange(math.prod(rows), dtype=mx.int32)
    key = key.reshape([-1] + [1] * (len(rows) - 1 - batch_axis))
    row = mix(mix(place.reshape(rows)) + key) | 1
    column = mix(mx.arange(1, shape[-1] + 1, dtype=mx.int32)) | 1
    return row, column, round(p * 2**32) - 2**31
