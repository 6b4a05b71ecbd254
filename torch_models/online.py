"""A long convolution whose inputs come a few at a time; the twin is mlx_models/online.py.

    y[t] = Σ_{s ≤ t} h[t − s] x[s]

B batch, T time, K kernels, D channels that share one; x and y (B, T, K, D), h (K, size). What is
held is laid out by kernel, (B, K, T, D), and in at least float32.

`PlainConv` multiplies a token with all before it. `OnlineConv` takes O(log² T) operations a token
for the same sums, by tiles of doubling size (Oncescu et al., Flash Inference, arXiv 2410.14067).
Within the present block of tokens a token is multiplied with those before it. When a block
is whole, at token t, and U is the largest power of two that divides t, what the last U inputs add
to the next U outputs is computed by one product of spectra. So all pairs of tokens are met once.
Inputs are kept where the sums for their own outputs were, which nobody needs any more.
"""

import torch

from specs.online import BLOCK
from torch_models.cache import Rows
from torch_models.layers import upcast
from torch_models.longconv import long_conv

KEPT = 1024  # inputs of the largest tile whose spectrum of h is kept: larger ones are rare


class Kernel:
    """h (K, size), and what is computed of it once; `most`: inputs that one token looks at."""

    def __init__(self, h, most):
        self.h = upcast(h)
        self.turned, self.spectra, self.known = self.h[:, :most].flip(1), {}, {}

    def once(self, function):
        """function(h), computed at the first call."""
        if function not in self.known:
            self.known[function] = function(self.h)
        return self.known[function]

    def last(self, inputs, T):
        """The last T outputs of all inputs (B, K, S, D)."""
        S, D = inputs.shape[2:]
        if T > 1:
            return long_conv(inputs.swapaxes(1, 2), self.h)[:, S - T :].swapaxes(1, 2)
        taps = self.turned[:, self.turned.shape[1] - S :]
        if D == 1:
            return (inputs[..., 0] * taps).sum(-1)[..., None, None]
        return taps[:, None] @ inputs

    def ahead(self, inputs):
        """What U inputs (B, K, U, D) add to the U outputs after theirs."""
        U = inputs.shape[2]
        spectrum = self.spectra.get(U)
        if spectrum is None:
            spectrum = torch.fft.rfft(self.h[:, : 2 * U], 2 * U)[..., None]
            if U <= KEPT:
                self.spectra[U] = spectrum
        product = torch.fft.rfft(inputs, 2 * U, dim=2) * spectrum
        return torch.fft.irfft(product, 2 * U, dim=2)[:, :, U:]


class PlainConv:
    """`conv(x, kernel)` takes the next T inputs (B, T, K, D) to their outputs; `kernel()` is h
    (K, size), asked for once. All inputs are kept."""

    def __init__(self, size):
        self.size, self.offset, self.kernel = size, 0, None
        self.inputs = Rows()

    def __call__(self, x, kernel):
        T = x.shape[1]
        if self.kernel is None:
            self.kernel = Kernel(kernel(), self.size)
        self.offset += T
        inputs = self.inputs.append(upcast(x).swapaxes(1, 2))
        return self.kernel.last(inputs, T).swapaxes(1, 2).to(x.dtype)

    def arrays(self):
        """What is held, by name."""
        return {"inputs": self.inputs.held()} if self.offset else {}

    def load(self, arrays, offset, dtype):
        """Hold what `arrays` gave after `offset` tokens, in at least float32 whatever `dtype`."""
        self.offset = offset
        if offset:
            self.inputs.load(arrays["inputs"])

    @property
    def nbytes(self):
        return self.inputs.nbytes

    def take(self, index):
        """A copy that holds these sequences of the batch only."""
        copy = PlainConv(self.size)
        copy.offset, copy.kernel, copy.inputs = (
            self.offset, self.kernel, self.inputs.take(index, 0))
        return copy


class OnlineConv:
    """The same function, by tiles. `rows` (B, K, S, D) are the inputs of all whole blocks, then
    sums for later outputs; `recent` the inputs since."""

    def __init__(self, size, block=BLOCK):
        self.size, self.block, self.offset, self.kernel = size, block, 0, None
        self.rows, self.recent = None, Rows(block=block)

    def __call__(self, x, kernel):
        T = x.shape[1]
        if self.kernel is None:
            self.kernel = Kernel(kernel(), self.block)
        inputs, outputs, start = upcast(x).swapaxes(1, 2), [], 0
        while start < T:
            end = start + self.stretch(T - start)
            outputs.append(self.read(inputs[:, :, start:end]))
            start = end
        return torch.cat(outputs, dim=2).swapaxes(1, 2).to(x.dtype)

    def stretch(self, T):
        """How many of the next T inputs are read at once: those that are left of a block, or a
        power of two of whole blocks that begins at a multiple of itself."""
        into = self.offset % self.block
        if into or T < self.block:
            return min(T, self.block - into)
        blocks = self.block << (T // self.block).bit_length() - 1
        return min(blocks, largest_power(self.offset)) if self.offset else blocks

    def read(self, x):
        """The outputs of such a stretch (B, K, T, D)."""
        start, T = self.offset, x.shape[2]
        inputs = self.recent.append(x) if T < self.block else x
        y = self.kernel.last(inputs, T)
        if self.rows is not None:
            y = y + self.rows[:, :, start : start + T]
        self.offset += T
        if self.offset % self.block == 0:
            self.keep(inputs)
            self.recent = Rows(block=self.block)
        return y

    def keep(self, inputs):
        """Put inputs (B, K, S, D) of whole blocks, the last that were read, to the others; add what
        they and those before them contribute to later outputs."""
        end, U = self.offset, largest_power(self.offset)
        if self.rows is None:
            self.rows = inputs
        else:
            self.rows[:, :, end - inputs.shape[2] : end] = inputs
        if end == self.size:
            return
        more = self.kernel.ahead(self.rows[:, :, end - U : end])[:, :, : self.size - end]
        if end == U:
            self.rows = torch.cat((self.rows, more), dim=2)
        else:
            self.rows[:, :, end : end + U] += more

    def arrays(self):
        """What is held, by name."""
        recent = {"recent": self.recent.held()} if self.recent.length else {}
        return recent if self.rows is None else {"rows": self.rows, **recent}

    def load(self, arrays, offset, dtype):
        """Hold what `arrays` gave after `offset` tokens, in at least float32 whatever `dtype`."""
        self.offset, self.rows = offset, arrays.get("rows")
        if "recent" in arrays:
            self.recent.load(arrays["recent"])

    @property
    def nbytes(self):
        return (0 if self.rows is None else self.rows.nbytes) + self.recent.nbytes

    def take(self, index):
        """A copy that holds these sequences of the batch only."""
        copy = OnlineConv(self.size, self.block)
        copy.offset, copy.kernel, copy.recent = (
            self.offset, self.kernel, self.recent.take(index, 0))
        copy.rows = None if self.rows is None else self.rows.index_select(0, index)
        return copy


def largest_power(n):
    """Of two that divides n > 0."""
    return n & -n


CONVS = {"cache": PlainConv, "online": OnlineConv}  # by the kind of the state
