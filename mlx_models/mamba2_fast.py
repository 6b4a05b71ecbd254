"""Numbers of heads, which have a backward pass by hand; the twin is torch_models/mamba2_fast.py."""

import mlx.core as mx

from mlx_models.layers import function


class ByHead:
    """`by_head` with its gradients, where a product sums over the channels."""

    @staticmethod
    def forward(x, number):
        return x * number[..., None]

    @staticmethod
    def backward(primals, g, _):
        x, number = primals
        return g * number[..., None], (g * x) @ mx.ones(g.shape[-1], g.dtype)


def by_head(x, number):
    """x (..., P) times one number for each head, number (...)."""
    return function(ByHead)(x, number)
