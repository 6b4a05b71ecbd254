"""Rows that lie together by expert, and their products with the experts' matrices.

The rows of each expert begin at a multiple of `block`: so shapes are known without asking the
device who was chosen, and what a row gives does not hang on how many others its expert has. See
torch_models/grouped.py for the twin.
"""

import mlx.core as mx


def block_size(assignments, experts):
    """An eighth of an equal share of the assignments, from 16 rows to 64; one row where the
    device has products for rows in groups."""
    if mx.default_device() == mx.gpu:
        return 1
    return min(max(assignments // (8 * experts) // 16 * 16, 16), 64)


def largest(scores, k):
    """The places of the k largest along the last axis, in the order of the places."""
    return mx.sort(mx.argpartition(-scores, k - 1, axis=-1)[..., :k], axis=-1)


def one_hot(chosen, experts):
    """1 for the expert that was chosen, 0 for the others: (..., E)."""
    return (chosen[..., None] == mx.arange(experts)).astype(mx.int32)


def layout(chosen, experts, block):
    """Where each of the assignments `chosen` (n,) goes.

    `place` (n,): its row; `ends` (E,): where the rows of each expert end, the last one's at the
    last of all `rows`. An expert's rows are in the order of the assignments; spare ones follow.
    """
    n = chosen.size
    rows = block * min(n, n // block + experts)
    mine = one_hot(chosen, experts)
    rank = (mx.cumsum(mine, axis=0) * mine).sum(-1) - 1
    room = (mine.sum(0) + block - 1) // block * block
    ends = mx.cumsum(room)
    place = (ends - room)[chosen] + rank
    return place, mx.concatenate([ends[:-1], mx.array([rows])]), rows


def spread(x, chosen, place, rows):
    """x (B, T, C) at the places of its assignments, `chosen` = (B, T, k): (rows, C), zeros
    elsewhere."""
    each = mx.broadcast_to(x[..., None, :], (*chosen, x.shape[-1])).reshape(len(place), -1)
    return mx.zeros((rows, x.shape[-1]), x.dtype).at[place].add(each)


def collect(x, place):
    """Back from there: (n, C)."""
    return x[place]


def every_product(x, weight):
    """x (1 or E, n, C) times the transpose of each matrix of weight (E, F, C): (E, n, F)."""
    return x @ weight.astype(x.dtype).swapaxes(1, 2)


def product(x, weight, ends, block):
    """x (R, C) times the transpose of the matrix of each row's expert, of weight (E, F, C)."""
    starts = mx.arange(0, len(x), block)
    expert = (starts[:, None] >= ends[:-1]).sum(-1).astype(mx.uint32)  # of each block
    if len(expert) < len(weight):  # no others are read
        weight, expert = weight[expert], mx.arange(len(expert), dtype=mx.uint32)
    weight = weight.astype(x.dtype)
    blocks, dtype = x.reshape(len(expert), block, -1), x.dtype
    if mx.default_device() == mx.cpu:  # which has this product in float32 alone
        blocks, weight = blocks.astype(mx.float32), weight.astype(mx.float32)
    y = mx.gather_mm(blocks, weight.swapaxes(1, 2), rhs_indices=expert, sorted_indices=True)
    return y.reshape(len(x), -1).astype(dtype)
