"""Numbers of heads, which have a backward pass by hand; the twin is mlx_models/mamba2_fast.py."""

import torch
from torch.autograd.function import once_differentiable


class ByHead(torch.autograd.Function):
    """`by_head` with its gradients, where a product sums over the channels. On a CPU, a sum that
    torch.compile (2.13) makes for fewer heads than a vector holds is written beyond its end."""

    @staticmethod
    def forward(ctx, x, number):
        ctx.save_for_backward(x, number)
        return x * number[..., None]

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, number = ctx.saved_tensors
        return g * number[..., None], (g * x) @ g.new_ones(g.shape[-1])


def by_head(x, number):
    """x (..., P) times one number for each head, number (...)."""
    return ByHead.apply(x, number)
