"""Rows that lie together by expert, and their products with the experts' matrices.

The rows of each expert begin at a multiple of `block`: so shapes are known without asking the
device who was chosen, and what a row gives does not hang on how many others its expert has. See
torch_models/grouped.py for the twin.
"""

import mlx.core as mx


def block_size(chosen, experts):
    """An eighth of an equal share of the assignments, from 16 rows to 64; one row where the
    device has products for rows in groups."""
    if mx.default_device() == mx.gpu:
        return 1
    return min(max(chosen.size // (8 * experts) // 16 * 16, 16), 64)


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


def copies(x, chosen):
    """x (B, T, C) for each assignment of chosen (B, T, k): (n, C)."""
    C = x.shape[-1]
    return mx.broadcast_to(x[..., None, :], (*chosen.shape, C)).reshape(-1, C)


def spread(x, place, rows):
    """x (n, C) at its places in (rows, C), zeros elsewhere."""
    return mx.zeros((rows, x.shape[-1]), x.dtype).at[place].add(x)


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
    weight = weight.astype(x.dtype)
    blocks, dtype = x.reshape(len(expert), block, -1), x.dtype
    if mx.default_device() == mx.cpu:  # which has this product in float32 alone
        blocks, weight = blocks.astype(mx.float32), weight.astype(mx.float32)
    y = mx.gather_mm(blocks, weight.swapaxes(1, 2), rhs_indices=expert, sorted_indices=True)
    return y.reshape(len(x), -1).astype(dtype)


def one_by_one(x, weight, chosen):
    """x (n, C) times the transposes of the matrices that were chosen (n,); no others are read."""
    rows = x[:, None]
    if weight.dtype == x.dtype:
        return mx.gather_mm(rows, weight.swapaxes(1, 2), rhs_indices=chosen)[:, 0]
    return (rows @ weight[chosen].astype(x.dtype).swapaxes(1, 2))[:, 0]
