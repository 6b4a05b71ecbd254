"""Causal convolution of a few taps, each channel by itself; the twin is mlx_models/shortconv.py.

    y_t = Σ_j weight_j w_{t − J + 1 + j} + bias

A few shifted products and sums are what a convolution of the framework costs on a GPU, and a
fraction of it on a CPU. But to differentiate a slice, frameworks fill a whole array with zeros for
each: here the gradient is a convolution too.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from torch_models.layers import upcast


def short_conv(w, weight, bias, before=None):
    """(y, the J − 1 inputs that the next tokens need) of w (B, T, ·), weight (·, J) and bias (·),
    in at least float32; `before` are these of earlier tokens, None for none."""
    B, T, width = w.shape
    w = upcast(w)
    if before is None:
        before = w.new_zeros((B, weight.shape[1] - 1, width))
    w = torch.cat((before, w), 1)
    return convolve(w, weight) + bias, w[:, T:]


def convolve(w, weight):
    """w (B, T + J − 1, ·), the first J − 1 of which came before; weight (·, J): (B, T, ·)."""
    taps = weight.T
    if len(taps) == w.shape[1]:  # a single token
        return (w * taps).sum(1, keepdim=True)
    return Convolution.apply(w, taps.contiguous())


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
