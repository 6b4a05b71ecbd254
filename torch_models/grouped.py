"""Rows that lie together by expert, and their products with the experts' matrices.

The rows of each expert begin at a multiple of `block`: so shapes are known without asking the
device who was chosen (the products of large matrices do ask), and what a row gives does not hang
on how many others its expert has. See mlx_models/grouped.py for the twin.
"""

import torch
import torch.nn.functional as F

SMALL = 2**13  # numbers in a matrix; below, the last bits of a row may hang on the others


def block_size(chosen, experts):
    """An eighth of an equal share of the assignments, from 16 rows to 64; 16 where the device can
    be asked who was chosen."""
    share = 0 if at_hand(chosen) else chosen.numel() // experts
    return min(max(share // 8 // 16 * 16, 16), 64)


def at_hand(x):
    """Whether reading numbers of x makes nobody wait."""
    return x.device.type == "cpu"


def largest(scores, k):
    """The places of the k largest along the last axis, in the order of the places."""
    return torch.sort(torch.topk(scores, k, dim=-1).indices, dim=-1).values


def one_hot(chosen, experts):
    """1 for the expert that was chosen, 0 for the others: (..., E)."""
    return (chosen[..., None] == torch.arange(experts, device=chosen.device)).to(torch.int32)


def layout(chosen, experts, block):
    """Where each of the assignments `chosen` (n,) goes.

    `place` (n,): its row; `ends` (E,): where the rows of each expert end, the last one's at the
    last of all `rows`. An expert's rows are in the order of the assignments; spare ones follow.
    """
    n = len(chosen)
    rows = block * min(n, n // block + experts)
    mine = one_hot(chosen, experts)
    rank = (torch.cumsum(mine, dim=0) * mine).sum(-1) - 1
    room = (mine.sum(0) + block - 1) // block * block
    ends = torch.cumsum(room, dim=0)
    rows = int(ends[-1]) if at_hand(ends) else rows
    place = (ends - room)[chosen] + rank
    return place, torch.cat([ends[:-1], ends.new_full((1,), rows)]), rows


def copies(x, chosen):
    """x (B, T, C) for each assignment of chosen (B, T, k): (n, C)."""
    C = x.shape[-1]
    return x[..., None, :].expand(*chosen.shape, C).reshape(-1, C)


def spread(x, place, rows):
    """x (n, C) at its places in (rows, C), zeros elsewhere."""
    return x.new_zeros(rows, x.shape[-1]).index_copy(0, place, x)


def collect(x, place):
    """Back from there: (n, C)."""
    return x.index_select(0, place)


def every_product(x, weight):
    """x (1 or E, n, C) times the transpose of each matrix of weight (E, F, C): (E, n, F)."""
    return x @ weight.to(x.dtype).swapaxes(1, 2)


def product(x, weight, ends, block):
    """x (R, C) times the transpose of the matrix of each row's expert, of weight (E, F, C)."""
    if in_groups(x, weight):
        matrices = weight.to(x.dtype).transpose(1, 2)
        return F.grouped_mm(x, matrices, offs=ends.to(torch.int32))
    if weight[0].numel() >= SMALL:  # a copy for each block would cost more than to ask
        rows = x.split(torch.diff(ends, prepend=ends.new_zeros(1)).tolist())
        return torch.cat([F.linear(part, matrix.to(x.dtype))
                          for part, matrix in zip(rows, weight, strict=True) if len(part)])
    starts = torch.arange(0, len(x), block, device=x.device)
    expert = (starts[:, None] >= ends[:-1]).sum(-1)  # of each block
    blocks = x.reshape(len(expert), block, -1)
    return (blocks @ weight.index_select(0, expert).to(x.dtype).transpose(1, 2)).flatten(0, 1)


def one_by_one(x, weight, chosen):
    """x (n, C) times the transposes of the matrices that were chosen (n,); no others are read."""
    if at_hand(x):
        return torch.cat([F.linear(row, weight[expert].to(x.dtype))
                          for row, expert in zip(x.split(1), chosen.tolist(), strict=True)])
    rows = x[:, None]
    return (rows @ weight.index_select(0, chosen).to(x.dtype).transpose(1, 2))[:, 0]


def in_groups(x, weight):
    """Whether the device has one product for all groups: CUDA in bfloat16, rows of 16 bytes."""
    return x.is_cuda and x.dtype == torch.bfloat16 and not any(n % 8 for n in weight.shape[1:])
