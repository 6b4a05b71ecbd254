"""What decoding keeps of past tokens: rows that grow, and the keys and values of attention."""

import torch

BLOCK = 256  # rows by which a buffer grows


class Rows:
    """Rows along axis −2, kept in a buffer that grows by whole blocks.

    `keep`: how many of the last rows are ever needed again (None: all), `first`: how many of the
    first rows besides. `dropped` rows between the two are no longer there.
    """

    def __init__(self, keep=None, block=BLOCK, first=0):
        self.keep, self.block, self.first = keep, block, first
        self.buffer, self.length, self.dropped = None, 0, 0

    def append(self, rows):
        """Add rows (..., T, N); all rows held, (..., S, N), these last."""
        T = rows.shape[-2]
        if not self.fits(T):
            total, dropped = self.after(T)
            room = -(-total // self.block) * self.block
            buffer = rows.new_zeros((*rows.shape[:-2], room, rows.shape[-1]))
            if self.needed:
                buffer[..., : self.needed, :] = self.held()
            self.length, self.buffer, self.dropped = self.needed, buffer, dropped
        self.buffer[..., self.length : self.length + T, :] = rows
        self.length += T
        return self.buffer[..., : self.length, :]

    def fits(self, T):
        return self.buffer is not None and self.length + T <= self.buffer.shape[-2]

    def after(self, T):
        """(rows held, rows dropped) once T more are appended."""
        gone = 0 if self.fits(T) else self.length - self.needed
        return self.length - gone + T, self.dropped + gone

    def held(self):
        """The rows that are needed again, those of the beginning first."""
        first = min(self.first, self.needed)
        last = self.buffer[..., self.length - self.needed + first : self.length, :]
        return torch.cat([self.buffer[..., :first, :], last], dim=-2) if first else last

    def clear(self):
        """The rows held, which are held no longer."""
        rows, self.length = self.buffer[..., : self.length, :], 0
        return rows

    def load(self, rows, dropped=0):
        """Hold these rows (..., S, N), between whose first and last so many were dropped."""
        self.buffer, self.length, self.dropped = rows, rows.shape[-2], dropped

    @property
    def needed(self):
        return self.length if self.keep is None else min(self.length, self.first + self.keep)

    @property
    def nbytes(self):
        return 0 if self.buffer is None else self.buffer[..., : self.needed, :].nbytes

    def take(self, index, axis):
        """A copy that holds these sequences of the batch only."""
        copy = Rows(self.keep, self.block, self.first)
        copy.length, copy.dropped = self.length, self.dropped
        copy.buffer = None if self.buffer is None else self.buffer.index_select(axis, index)
        return copy


class KeyValueCache:
    """Keys and values (B, H, S, D) of all tokens, or of those that a window and the first `sinks`
    tokens still show (Xiao et al., arXiv 2309.17453)."""

    def __init__(self, window=None, sinks=0, block=BLOCK):
        keep = window and window - 1
        self.window, self.sinks, self.offset = window, sinks, 0
        self.k, self.v = (Rows(keep, block, sinks) for _ in range(2))

    def update_and_fetch(self, k, v):
        """Add those of T tokens; all that are held, these last."""
        self.offset += k.shape[-2]
        return self.k.append(k), self.v.append(v)

    def make_mask(self, tokens):
        """What `tokens` (B, T), about to be read, see of the S rows that will be held then.

        None: everything; "causal": plain causal attention with S = T; else (T, S) bool.
        """
        T, start = tokens.shape[1], self.offset
        if self.window is None or start + T <= self.window:
            if T == 1:
                return None
            if start == 0:
                return "causal"
        S, dropped = self.k.after(T)
        t = torch.arange(start, start + T, device=tokens.device)[:, None]
        s = torch.arange(S, device=tokens.device)
        s = torch.where(s < self.sinks, s, s + dropped)
        seen = s <= t
        if self.window is not None:
            seen = seen & ((s > t - self.window) | (s < self.sinks))
        return seen

    def arrays(self):
        """What is held, by name."""
        return {"k": self.k.held(), "v": self.v.held()} if self.offset else {}

    def load(self, arrays, offset, dtype):
        """Hold in `dtype` what `arrays` gave after `offset` tokens."""
        self.offset = offset
        for name, rows in arrays.items():
            getattr(self, name).load(rows.to(dtype), offset - rows.shape[-2])

    @property
    def nbytes(self):
        return self.k.nbytes + self.v.nbytes

    def take(self, index):
        """A copy that holds these sequences of the batch only."""
        copy = KeyValueCache(self.window, self.sinks)
        copy.k, copy.v, copy.offset = self.k.take(index, 0), self.v.take(index, 0), self.offset
        return copy


class ConstantCache:
    """What a recurrence keeps: arrays (B, …) of constant size by name, none before the first
    token."""

    def __init__(self):
        self.held, self.offset = {}, 0

    def get(self, name):
        return self.held.get(name)

    def put(self, T, **arrays):
        """These in the place of those of the same names, T tokens later."""
        self.held, self.offset = {**self.held, **arrays}, self.offset + T

    def arrays(self):
        """What is held, by name."""
        return self.held

    def load(self, arrays, offset, dtype):
        """Hold what `arrays` gave after `offset` tokens, in at least float32 whatever `dtype`."""
        self.held, self.offset = arrays, offset

    @property
    def nbytes(self):
        return sum(array.nbytes for array in self.held.values())

    def take(self, index):
        """A copy that holds these sequences of the batch only."""
        copy = ConstantCache()
        copy.held = {name: array.index_select(0, index) for name, array in self.held.items()}
        copy.offset = self.offset
        return copy
