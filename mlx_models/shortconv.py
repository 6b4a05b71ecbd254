"""Causal convolution of a few taps, each channel by itself; the twin is torch_models/shortconv.py.

    y_t = Σ_j weight_j w_{t − J + 1 + j} + bias

A few shifted products and sums are what a convolution of the framework costs on a GPU, and a
fraction of it on a CPU. But to differentiate a slice, frameworks fill a whole array with zeros for
each: here the gradient is a convolution too.
"""

import mlx.core as mx

from mlx_models.layers import function, upcast


def short_conv(w, weight, bias, before=None):
    """(y, the J − 1 inputs that the next tokens need) of w (B, T, ·), weight (·, J) and bias (·),
    in at least float32; `before` are these of earlier tokens, None for none."""
    B, T, width = w.shape
    w = upcast(w)
    if before is None:
        before = mx.zeros((B, weight.shape[1] - 1, width), w.dtype)
    w = mx.concatenate((before, w), 1)
    return convolve(w, weight) + bias, w[:, T:]


def convolve(w, weight):
    """w (B, T + J − 1, ·), the first J − 1 of which came before; weight (·, J): (B, T, ·)."""
    taps = weight.T
    if len(taps) == w.shape[1]:  # a single token
        return (w * taps).sum(1, keepdims=True)
    return function(Convolution)(w, mx.contiguous(taps))


def shifted_sum(w, taps):
    """Σ_j taps_j w_{t+j} for w (B, T + J − 1, ·) and taps (J, ·): (B, T, ·)."""
    T = w.shape[1] - len(taps) + 1
    y = w[:, :T] * taps[0]
    for j in range(1, len(taps)):
        y = y + w[:, j : j + T] * taps[j]
    return y


class Convolution:
    """`shifted_sum` with its gradients."""

    @staticmethod
    def forward(w, taps):
        return shifted_sum(w, taps)

    @staticmethod
    def backward(primals, g, _):
        w, taps = primals
        J, T = len(taps), g.shape[1]
        dw = shifted_sum(mx.pad(g, ((0, 0), (J - 1, J - 1), (0, 0))), taps[::-1])
        return dw, mx.stack([(g * w[:, j : j + T]).sum((0, 1)) for j in range(J)])
