"""Multi-query associative recall, made on the fly (Arora et al., Zoology, arXiv 2312.04927).

A text of T tokens tells N pairs of a key and a value, all different; then keys come again, and the
value that belongs to each is to be said at once:

    k1 v1 k2 v2 … kN vN  k2 v2 k1 v1 k1 v1 …    targets: v2 at each k2, v1 at each k1, else none
    k1 v1 k2 v2 … kN vN  0 0 k2 0 k1 0 …        `sparse`: v2 at that k2, v1 at that k1, else none

Keys are 1 … V/2 − 1, values V/2 … V − 1. The text goes on with keys drawn evenly, each followed by
the right answer, as in a language: so it teaches much. With `sparse`, as in the paper, each key is
asked for once, at the g-th place after the pairs with a probability that falls as g^(a − 1),
a = 0.01, and 0 fills what is left. Texts are a function of (seed, step), so both backends see the
same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specs import UserError
from specs.backend import Batch
from specs.init import philox

SKEW = 0.01  # a


@dataclass(frozen=True)
class Recall:
    """Texts of `length` tokens with a vocabulary of `vocab_size`."""

    length: int
    vocab_size: int
    sparse: bool = False

    def require(self, pairs: int) -> None:
        """Raise `UserError` unless so many pairs, and half as much text behind them, find room."""
        if pairs < 1 or 3 * pairs > self.length or pairs >= self.vocab_size // 2:
            most = min(self.length // 3, self.vocab_size // 2 - 1)
            raise UserError(f"{pairs} pairs do not fit into {self.length} tokens of a vocabulary "
                            f"of {self.vocab_size}: choose 1 to {most}")

    def batch(self, seed: int, step: object, pairs: int, rows: int) -> Batch:
        """`rows` texts with so many pairs, drawn for this step; targets are −1 but where a key is
        asked for. Row b depends on b alone among the rows."""
        half, rest = self.vocab_size // 2, self.length - 2 * pairs
        raw = philox(seed, "recall", pairs, step).random_raw(rows * (self.vocab_size - 1 + rest))
        raw = raw.reshape(rows, -1)
        by_key, by_value, by_place = np.split(raw, [half - 1, self.vocab_size - 1], axis=1)
        keys = 1 + by_key.argsort(axis=1, kind="stable")[:, :pairs]  # (B, N)
        values = half + by_value.argsort(axis=1, kind="stable")[:, :pairs]
        if self.sparse:
            # The least of exponential waiting times: a draw without replacement by these weights
            waiting = -np.log1p(-((by_place >> np.uint64(11)) * 2.0**-53))
            waiting /= np.arange(1, rest + 1) ** (SKEW - 1)
            place = 2 * pairs + waiting.argsort(axis=1, kind="stable")[:, :pairs]
            asked = np.arange(pairs)
        else:
            place = np.arange(2 * pairs, self.length, 2)
            asked = (by_place[:, : len(place)] % np.uint64(pairs)).astype(np.int64)
        row = np.arange(rows)[:, None]
        tokens = np.zeros((rows, self.length), np.int32)
        targets = np.full_like(tokens, -1)
        tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
        tokens[row, place], targets[row, place] = keys[row, asked], values[row, asked]
        if not self.sparse:
            tokens[:, 2 * pairs + 1 :: 2] = values[row, asked][:, : rest // 2]
        return Batch(tokens, targets)
