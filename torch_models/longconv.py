"""Causal convolutions as long as the text; the twin is mlx_models/longconv.py.

    y[t] = Σ_{s ≤ t} h[t − s] x[s]

B batch, T time, K kernels, D channels that share one; x and y (B, T, K, D), h (K, S) with S ≥ T.
One function in three forms; N = B·D columns are what a kernel is multiplied with:

    direct   the Toeplitz matrix of h, (T, T) for each kernel, times x: T² N multiplications, the
             framework's own gradient. What the others are held against
    chunked  Q outputs at a time, from the inputs up to them: the matrix of the last Q of them,
             (Q, T), holds those of all; half the multiplications
    fft      products of spectra of 2T entries, which wrap nothing around: T log T

The first two multiply in the dtype of x, and see nothing that follows, to the bit; fft is in at
least float32, and what follows is in its rounding. The gradient of the last two is by hand: that at
x is the same convolution backwards in time, that at h[m] the sum of dy[t]·x[t − m].
"""

import torch
import torch.nn.functional as F

from torch_models.layers import upcast

CHUNK = 128  # Q


def long_conv(x, h):
    """y (B, T, K, D) of x (B, T, K, D) and h (K, S), in the dtype of x, in the form that is
    fastest at that size."""
    form = fastest(*x.shape[1:])
    return {"direct": direct, "chunked": chunked, "fft": fft}[form](x, h)


def direct(x, h):
    B, T = x.shape[:2]
    return unfolded(toeplitz(h[:, :T], T).to(x.dtype) @ folded(x), B)


def chunked(x, h):
    return unfolded(alone(Chunked.apply)(folded(x), upcast(h[:, : x.shape[1]])), len(x))


def fft(x, h):
    columns = upcast(folded(x)).mT.contiguous()
    y = alone(Spectral.apply)(columns, upcast(h[:, : x.shape[1]]))
    return unfolded(y.mT, len(x)).to(x.dtype)


def alone(function):
    """`function`, which a compiler shall leave as it is: it cannot write complex products, and
    unrolls loops."""
    return torch.compiler.disable(function) if torch.compiler.is_compiling() else function


def folded(x):
    """(B, T, K, D) → (K, T, N)."""
    return x.permute(2, 1, 0, 3).flatten(2)


def unfolded(y, B):
    """(K, T, N) → (B, T, K, D)."""
    return y.reshape(*y.shape[:2], B, -1).permute(2, 1, 0, 3)


def toeplitz(h, Q):
    """The last Q rows of the T: h[t − s] for s ≤ t, else 0; (K, T) → (K, Q, T).

    A row is the one above it, one place on: so it is cut from repetitions of one vector, which are
    a place longer than the rows.
    """
    T = h.shape[1]
    turned, above = h.flip(1), h.new_zeros(len(h), Q)
    row = torch.cat((turned[:, Q - 1 :], above, turned[:, : Q - 1]), dim=1)  # T + Q places
    return row.repeat(1, Q)[:, : Q * (T + Q - 1)].reshape(len(h), Q, -1)[..., :T]


def diagonals(M):
    """The sums of what `toeplitz` makes of one entry of h: (K, Q, T) → (K, T)."""
    K, Q, T = M.shape
    rows = F.pad(F.pad(M, (0, Q - 1)).flatten(1), (0, Q)).reshape(K, Q, T + Q)
    row = rows.sum(1)
    return torch.cat((row[:, T + 1 :], row[:, : T - Q + 1]), dim=1).flip(1)


def ends(T, Q):
    """(first, after the last) of each Q places from the end on; fewer at the beginning."""
    return [(max(end - Q, 0), end) for end in range(T, 0, -Q)][::-1]


def in_chunks(x, h, Q):
    T = x.shape[1]
    M = toeplitz(h.to(x.dtype), Q)
    return torch.cat([M[:, start - end :, T - end :] @ x[:, :end] for start, end in ends(T, Q)],
                     dim=1)


class Chunked(torch.autograd.Function):
    """x (K, T, N), h (K, T) → (K, T, N)."""

    @staticmethod
    def forward(ctx, x, h):
        ctx.save_for_backward(x, h)
        return in_chunks(x, h, min(CHUNK, x.shape[1]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, h = ctx.saved_tensors
        T = x.shape[1]
        Q = min(CHUNK, T)
        dM = h.new_zeros(len(h), Q, T)
        for start, end in ends(T, Q):
            dM[:, start - end :, T - end :] += dy[:, start:end] @ x[:, :end].mT
        return in_chunks(dy.flip(1), h, Q).flip(1), diagonals(dM)


class Spectral(torch.autograd.Function):
    """x (K, N, T), h (K, T) → (K, N, T). Spectra are computed again in the backward pass: they are
    four times as large as what they are of."""

    @staticmethod
    def forward(ctx, x, h):
        ctx.save_for_backward(x, h)
        return back(spectrum(x) * spectrum(h)[:, None], x.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, h = ctx.saved_tensors
        T, dY = x.shape[-1], spectrum(dy)
        dh = (dY * spectrum(x).conj()).sum(1)
        return back(dY * spectrum(h)[:, None].conj(), T), back(dh, T)


def size(T):
    """The least 2ⁿ, 3·2ⁿ or 5·2ⁿ in which T places shifted by less than T do not wrap around."""
    least = 2 * T - 1
    return min(odd << max(0, (-(-least // odd) - 1).bit_length()) for odd in (1, 3, 5))


def spectrum(x):
    return torch.fft.rfft(x, size(x.shape[-1]))


def back(spectrum, T):
    return torch.fft.irfft(spectrum, size(T))[..., :T]


def fastest(T, K, D):
    return "direct" if T <= CHUNK else "fft"
