"""The largest micro-batch that fits a given memory, found by trying, not by formula."""

from __future__ import annotations

from collections.abc import Callable

from specs.backend import Backend, Batch, Trainer
from specs.errors import UserError


def micro_batch_for(memory: int, backend: Backend, trainer: Trainer,
                    make_rows: Callable[[int], Batch], batch_size: int) -> int:
    """Rows whose training step stays below `memory` bytes, at most `batch_size`.

    Steps of one and of two rows at rate 0 change no weight; what they moved in the optimizer is
    put back. Peak memory is taken as a straight line through the two. Raises `UserError` if not
    even one row fits.
    """
    before = trainer.state()
    peaks = []
    for rows in (1, 2):
        backend.reset_peak_memory()
        batch = make_rows(rows)
        trainer.step([batch, batch], 0.0)
        trainer.read()
        peaks.append(backend.peak_memory())
    trainer.load_state(before)
    if peaks[0] > memory:
        raise UserError(f"one row takes {peaks[0] / 2**30:.2f} GB, more than --memory "
                        f"{memory / 2**30:.2f}GB: allow more, or use --recompute or a smaller "
                        "--block-size")
    per_row = max(peaks[1] - peaks[0], 1)
    return max(1, min(batch_size, 1 + (memory - peaks[0]) // per_row))
