"""How many rows fit, of a step that takes more than a straight line says."""

from __future__ import annotations

from typing import Any

import pytest

from train.memory import micro_batch_for


class Machine:
    """Backend and trainer: a step of `rows` rows takes 100 + 10·rows bytes, from 30 rows on twice
    as much for each; where it `forgets` the peak can be begun anew."""

    def __init__(self, forgets: bool) -> None:
        self.forgets, self.most = forgets, 0

    def reset_peak_memory(self) -> None:
        if self.forgets:
            self.most = 0

    def step(self, batches: list[Any], lr: float) -> None:
        rows = batches[0]
        self.most = max(self.most, 100 + 10 * rows + 10 * max(rows - 30, 0))

    def peak_memory(self) -> int:
        return self.most

    def read(self) -> None: ...
    def state(self) -> None: ...
    def load_state(self, state: None) -> None: ...


@pytest.mark.parametrize("forgets, rows", [(True, 20), (False, 32)], ids=["falls", "stays"])
def test_a_peak_that_cannot_be_begun_anew_does_not_end_at_one_row(forgets: bool,
                                                                  rows: int) -> None:
    machine: Any = Machine(forgets)
    assert micro_batch_for(500, machine, machine, lambda rows: rows, 64) == rows  # type: ignore
