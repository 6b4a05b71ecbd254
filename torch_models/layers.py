"""What every architecture of this panel uses: precision, dropout, recomputation."""

import math

import torch
from torch.utils.checkpoint import checkpoint

_GOLDEN, _MIX1, _MIX2 = -1640531527, 2146121005, -2073254261  # odd; as signed 32-bit numbers


def upcast(x):
    """x in at least float32: where norms, softmax and losses are computed."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def recompute(layer, *args):
    """layer(*args), whose activations are computed again in the backward pass."""
    return checkpoint(layer, *args, use_reentrant=False)


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
