"""Windows of a corpus: a batch is a pure function of (corpus fingerprint, seed, step).

So there is no loader state to save, and a resumed run, on whichever backend, sees the same tokens.
The random numbers are raw Philox output, which numpy promises never to change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from specs.backend import Batch
from specs.init import philox
from train.data import Corpus

T = TypeVar("T")


def batch(corpus: Corpus, seed: int, step: int, batch_size: int, block_size: int,
          dropout: bool = False) -> Batch:
    """`batch_size` windows of the training part, drawn for this step: tokens and targets (B, T).

    Row b depends on b alone among the rows: a larger batch begins with the same rows. With
    `dropout` each row has a key. The corpus must be long enough (`require_length`).
    """
    stream = philox(int(seed), "batch", corpus.fingerprint, int(step))
    starts = stream.random_raw(batch_size) % (len(corpus.train) - block_size)
    keys = None
    if dropout:
        raw = philox(int(seed), "dropout", int(step)).random_raw(batch_size)
        keys = (raw >> 33).astype(np.int32)  # 31 bits
    return Batch(*_windows(corpus.train, starts.astype(np.int64), block_size), keys)


def split(batch: Batch, micro_batch: int) -> list[Batch]:
    """The rows of `batch` in order, at most `micro_batch` at a time: the last may have fewer."""
    return [
        Batch(batch.tokens[start:start + micro_batch], batch.targets[start:start + micro_batch],
              None if batch.keys is None else batch.keys[start:start + micro_batch])
        for start in range(0, len(batch.tokens), micro_batch)
    ]


def validation_windows(corpus: Corpus, block_size: int, max_windows: int,
                       ) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets, both (n, T), of n ≤ `max_windows` windows of the held-out part.

    They are spread evenly and overlap nowhere, so each target is counted once. The corpus must
    be long enough (`require_length`).
    """
    available = (len(corpus.val) - 1) // block_size
    count = min(available, max_windows)
    starts = np.arange(count) * available // count * block_size
    return _windows(corpus.val, starts, block_size)


def _windows(part: np.ndarray, starts: np.ndarray, block_size: int,
             ) -> tuple[np.ndarray, np.ndarray]:
    windows = part[starts[:, None] + np.arange(block_size + 1)].astype(np.int32)
    return windows[:, :-1], windows[:, 1:]  # (B, T)


def prefetch(make: Callable[[int], T], start: int, stop: int, depth: int = 2) -> Iterator[T]:
    """make(start), …, make(stop − 1), up to `depth` of them made ahead in a thread.

    An exception in `make` is raised where its value would have come. The thread ends with the
    iterator, also when it is closed early.
    """
    with ThreadPoolExecutor(1, "prefetch") as pool:
        ahead = deque(pool.submit(make, i) for i in range(start, min(start + depth, stop)))
        try:
            for i in range(start + depth, stop + depth):
                if i < stop:
                    ahead.append(pool.submit(make, i))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
