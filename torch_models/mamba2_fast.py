"""What of mamba2 has a backward pass by hand: its short convolution, and numbers of heads; the twin
is mlx_models/mamba2_fast.py.

The convolution, each channel by itself: y_t = Σ_j taps_j w_{t+j}. Four shifted products and sums
are what a convolution of the framework costs on a GPU, and a fraction of it on a CPU. But to
differentiate a slice, frameworks fill a whole array with zeros for each: here the gradient is a
convolution too.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def shifted_sum(w, taps):
    """Σ_j taps_j w_{t+j} for w (B, T + J − 1, ·) and taps (J, ·): (B, T, ·)."""
    T = w.shape[1] - len(taps) + 1
    y = w[:, :T] * taps[0]
    for j in range(1, len(taps)):
        y = torch.addcmul(y, w[:, j : j + T], taps[j])
    return y


class Convolution(torch.autograd.Function):
    """`shifted_sum` with its gradients."""

    @staticmethod
    def forward(ctx, w, taps):
        ctx.save_for_backward(w, taps)
        return shifted_sum(w, taps)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        w, taps = ctx.saved_tensors
        J, T = len(taps), g.shape[1]
        dw = shifted_sum(F.pad(g, (0, 0, J - 1, J - 1)), taps.flip(0))
        return dw, torch.stack([(g * w[:, j : j + T]).sum((0, 1)) for j in range(J)])


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


def convolve(w, weight):
    """w (B, T + J − 1, ·), the first J − 1 of which came before; weight (·, J): (B, T, ·)."""
    return Convolution.apply(w, weight.T.contiguous())


def by_head(x, number):
    """x (..., P) times one number for each head, number (...)."""
    return ByHead.apply(x, number)
