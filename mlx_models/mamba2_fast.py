"""What of mamba2 has a backward pass by hand: its short convolution, and numbers of heads; the twin
is torch_models/mamba2_fast.py.

The convolution, each channel by itself: y_t = Σ_j taps_j w_{t+j}. Four shifted products and sums
are what a convolution of the framework costs on a GPU, and a fraction of it on a CPU. But to
differentiate a slice, frameworks fill a whole array with zeros for each: here the gradient is a
convolution too.
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
    def forward(w, taps):
        return shifted_sum(w, taps)

    @staticmethod
    def backward(primals, g, _):
        w, taps = primals
        J, T = len(taps), g.shape[1]
        dw = shifted_sum(mx.pad(g, ((0, 0), (J - 1, J - 1), (0, 0))), taps[::-1])
        return dw, mx.stack([(g * w[:, j : j + T]).sum((0, 1)) for j in range(J)])


class ByHead:
    """`by_head` with its gradients, where a product sums over the channels."""

    @staticmethod
    def forward(x, number):
        return x * number[..., None]

    @staticmethod
    def backward(primals, g, _):
        x, number = primals
        return g * number[..., None], (g * x) @ mx.ones(g.shape[-1], g.dtype)


def function(cls):
    """What `cls.forward` gives and `cls.backward` differentiates."""
    made = mx.custom_function(cls.forward)
    made.vjp(cls.backward)
    return made


def convolve(w, weight):
    """w (B, T + J − 1, ·), the first J − 1 of which came before; weight (·, J): (B, T, ·)."""
    return function(Convolution)(w, mx.contiguous(weight.T))


def by_head(x, number):
    """x (..., P) times one number for each head, number (...)."""
    return function(ByHead)(x, number)
