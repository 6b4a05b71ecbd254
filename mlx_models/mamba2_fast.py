"""The short causal convolution of mamba2 with a backward pass by hand; the twin is
torch_models/mamba2_fast.py.

Each channel by itself: y_t = Σ_j taps_j w_{t+j}. Four shifted products and sums are what a
convolution of the framework costs on a GPU, and a fraction of it on a CPU. But to differentiate a
slice, frameworks fill a whole array with zeros for each: here the gradient is a convolution too.
"""

import mlx.core as mx


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
    def apply(w, taps):
        function = mx.custom_function(shifted_sum)
        function.vjp(Convolution.backward)
        return function(w, taps)

    @staticmethod
    def backward(primals, g, _):
        w, taps = primals
        J, T = len(taps), g.shape[1]
        dw = shifted_sum(mx.pad(g, ((0, 0), (J - 1, J - 1), (0, 0))), taps[::-1])
        return dw, mx.stack([(g * w[:, j : j + T]).sum((0, 1)) for j in range(J)])


def convolve(w, weight):
    """w (B, T + J − 1, ·), the first J − 1 of which came before; weight (·, J): (B, T, ·)."""
    return Convolution.apply(w, mx.contiguous(weight.T))
