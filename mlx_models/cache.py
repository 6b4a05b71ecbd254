"""Rows that grow: what a cache of past tokens is made of."""

import mlx.core as mx

BLOCK = 256  # rows by which a buffer grows


class Rows:
    """Rows along axis −2, kept in a buffer that grows by whole blocks.

    `keep`: how many of the last rows are ever needed again (None: all).
    """

    def __init__(self, keep=None, block=BLOCK):
        self.keep, self.block, self.buffer, self.length = keep, block, None, 0

    def append(self, rows):
        """Add rows (..., T, N); all rows held, (..., S, N), these last."""
        T = rows.shape[-2]
        if self.buffer is None or self.length + T > self.buffer.shape[-2]:
            held = self.needed
            room = -(-(held + T) // self.block) * self.block
            buffer = mx.zeros((*rows.shape[:-2], room, rows.shape[-1]), rows.dtype)
            if held:
                buffer[..., :held, :] = self.buffer[..., self.length - held : self.length, :]
            self.buffer, self.length = buffer, held
        self.buffer[..., self.length : self.length + T, :] = rows
        self.length += T
        return self.buffer[..., : self.length, :]

    def clear(self):
        """The rows held, which are held no longer."""
        rows, self.length = self.buffer[..., : self.length, :], 0
        return rows

    @property
    def needed(self):
        return self.length if self.keep is None else min(self.length, self.keep)

    @property
    def nbytes(self):
        return 0 if self.buffer is None else self.buffer[..., : self.needed, :].nbytes

    def take(self, index, axis):
        """A copy that holds these sequences of the batch only."""
        copy = Rows(self.keep, self.block)
        copy.length = self.length
        copy.buffer = None if self.buffer is None else mx.take(self.buffer, index, axis)
        return copy
