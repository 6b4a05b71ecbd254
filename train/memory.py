"""The largest micro-batch that fits a given memory, found by trying, not by formula."""

from __future__ import annotations

import math
from collections.abc import Callable

from specs.backend import Backend, Batch, Trainer
from specs.errors import UserError


def micro_batch_for(memory: int, backend: Backend, trainer: Trainer,
                    make_rows: Callable[[int], Batch], batch_size: int) -> int:
    """Rows whose training step stays below `memory` bytes, at most `batch_size`.

    Steps at rate 0 change no weight; what they moved in the optimizer is put back. Peak memory is
    taken as a straight line through one row and four, and the rows that it promises are tried,
    half as many where they take more. Where the figure does not fall with them, as of a system
    that cannot begin it anew, it tells nothing, and a fifth of the promise is left out.
    Raises `UserError` if not even one row fits.
    """
    before = trainer.state()

    def peak(rows: int) -> int:
        backend.reset_peak_memory()
        trainer.step([make_rows(rows)] * (1 if rows == batch_size else 2), 0.0)
        trainer.read()
        return backend.peak_memory()

    one, few = peak(1), min(4, batch_size)
    if one > memory:
        raise UserError(f"one row takes {one / 2**20:,.0f} MB, more than --memory "
                        f"{memory / 2**20:,.0f}MB: allow more, or use --recompute or a smaller "
                        "--block-size")
    per_row = max((peak(few) - one) // max(few - 1, 1), 1)
    rows = promised = max(1, min(batch_size, 1 + (memory - one) // per_row))
    last = math.inf
    while rows > 1 and (now := peak(rows)) > memory:
        if now >= last:
            rows = max(1, int(0.8 * promised))
            break
        rows, last = rows // 2, now
    trainer.load_state(before)
    return rows
