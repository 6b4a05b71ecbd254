"""Causal convolutions as long as the text; the twin is torch_models/longconv.py.

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

import mlx.core as mx

from mlx_models.layers import upcast

CHUNK = 128  # Q
# Where the forms change places on a core of an AMD EPYC, forwards and backwards in float32. For one
# number products take about 0.05·T ns, and to make the matrix 8·T/N more; transforms 45 at any T.
MATRIX = 128  # columns that are multiplied with while the matrix is made
SPECTRA = 1024  # tokens, of many columns
SHORT = 64  # tokens that take no time worth a rounding of what follows
AGAIN = 8  # the share of the outputs that is computed once more, and so on


def long_conv(x, h):
    """y (B, T, K, D) of x (B, T, K, D) and h (K, S), in the dtype of x, in the form that is
    fastest at that size."""
    B, T, _, D = x.shape
    return {"direct": direct, "chunked": chunked, "fft": fft}[fastest(T, B * D)](x, h)


def fastest(T, N):
    """The name of the form."""
    if T > SHORT and T * (1 + MATRIX / N) > SPECTRA:
        return "fft"
    return "chunked" if T > CHUNK else "direct"


def direct(x, h):
    B, T = x.shape[:2]
    return unfolded(toeplitz(h[:, :T], T).astype(x.dtype) @ folded(x), B)


def chunked(x, h):
    y = by_hand(chunks, chunks_backward, folded(x), upcast(h[:, : x.shape[1]]))
    return unfolded(y, len(x))


def fft(x, h):
    columns = mx.contiguous(upcast(folded(x)).mT)
    y = by_hand(spectra, spectra_backward, columns, upcast(h[:, : x.shape[1]]))
    return unfolded(y.mT, len(x)).astype(x.dtype)


class ByHand:
    """forward(x, h), whose gradients are backward(x, h, dy)."""

    def __call__(self, forward, backward, x, h):
        function = mx.custom_function(forward)
        function.vjp(lambda inputs, dy, y: backward(*inputs, dy))
        return function(x, h)


def by_hand(*args):
    return ByHand()(*args)


def folded(x):
    """(B, T, K, D) → (K, T, N)."""
    return x.transpose(2, 1, 0, 3).flatten(2)


def unfolded(y, B):
    """(K, T, N) → (B, T, K, D)."""
    return y.reshape(*y.shape[:2], B, -1).transpose(2, 1, 0, 3)


def toeplitz(h, Q):
    """The last Q rows of the T: h[t − s] for s ≤ t, else 0; (K, T) → (K, Q, T).

    A row is the one above it, one place on: so it is cut from repetitions of one vector, which are
    a place longer than the rows.
    """
    T = h.shape[1]
    turned, above = h[:, ::-1], mx.zeros((len(h), Q), h.dtype)
    row = mx.concatenate((turned[:, Q - 1 :], above, turned[:, : Q - 1]), axis=1)  # T + Q places
    return mx.tile(row, (1, Q))[:, : Q * (T + Q - 1)].reshape(len(h), Q, -1)[..., :T]


def diagonals(M):
    """The sums of what `toeplitz` makes of one entry of h: (K, Q, T) → (K, T)."""
    K, Q, T = M.shape
    rows = mx.pad(M, ((0, 0), (0, 0), (0, Q - 1))).flatten(1)
    row = mx.pad(rows, ((0, 0), (0, Q))).reshape(K, Q, T + Q).sum(1)
    return mx.concatenate((row[:, T + 1 :], row[:, : T - Q + 1]), axis=1)[:, ::-1]


def ends(T, Q):
    """(first, after the last) of each Q places from the end on; fewer at the beginning."""
    return [(max(end - Q, 0), end) for end in range(T, 0, -Q)][::-1]


def chunks(x, h):
    """x (K, T, N), h (K, T) → (K, T, N)."""
    T = x.shape[1]
    Q = min(CHUNK, T)
    M = toeplitz(h.astype(x.dtype), Q)
    parts = [M[:, start - end :, T - end :] @ x[:, :end] for start, end in ends(T, Q)]
    return mx.concatenate(parts, axis=1)


def chunks_backward(x, h, dy):
    T = x.shape[1]
    Q = min(CHUNK, T)
    dM = mx.zeros((len(h), Q, T), h.dtype)
    for start, end in ends(T, Q):
        dM[:, start - end :, T - end :] += dy[:, start:end] @ x[:, :end].mT
    return chunks(dy[:, ::-1], h)[:, ::-1], diagonals(dM)


def spectra(x, h):
    """x (K, N, T), h (K, T) → (K, N, T).

    All outputs share the rounding of the largest. Where they grow with t, the first would drown
    in it: so those are computed once more, from what they see only.
    """
    T = x.shape[-1]
    y = back(spectrum(x) * spectrum(h)[:, None], T)
    if T < AGAIN:
        return y
    first = spectra(x[..., : T // AGAIN], h[:, : T // AGAIN])
    return mx.concatenate((first, y[..., T // AGAIN :]), axis=-1)


def spectra_backward(x, h, dy):
    """Spectra are computed again: they are four times as large as what they are of."""
    T, dY = x.shape[-1], spectrum(dy)
    dh = (dY * spectrum(x).conj()).sum(1)
    return back(dY * spectrum(h)[:, None].conj(), T), back(dh, T)


def size(T):
    """The least 2ⁿ, 3·2ⁿ or 5·2ⁿ in which T places shifted by less than T do not wrap around; 2ⁿ
    where Metal would go through a power of two anyway."""
    least = 2 * T - 1
    odds = (1, 3, 5) if mx.default_device() == mx.cpu or least <= 4096 else (1,)
    return min(odd << max(0, (-(-least // odd) - 1).bit_length()) for odd in odds)


def spectrum(x):
    return mx.fft.rfft(x, size(x.shape[-1]))


def back(spectrum, T):
    return mx.fft.irfft(spectrum, size(T))[..., :T]
