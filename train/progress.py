"""What a person watches while a run trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from train.numerals import duration

_COLUMNS = ("loss", "lr", "grad", "rate", "memory")


def numbers(row: dict[str, Any]) -> dict[str, str]:
    """A metrics row as a person reads it."""
    return {
        "loss": f"loss {row['loss']:.4f}",
        "lr": f"lr {row['lr']:.2e}",
        "grad": f"grad {row['grad_norm']:.2f}",
        "rate": f"{row['tokens_per_s']:,.0f} tok/s",
        "memory": f"{row['memory'] / 2**30:.2f} GB",
    }


class Display:
    """Shows progress of `total` units (steps, or seconds of a run bounded by time)."""

    def __init__(self, total: float, done: float):
        self.total, self.console = total, Console(stderr=True)
        self.live = self.console.is_terminal
        fields = [TextColumn("{task.fields[" + name + "]}") for name in _COLUMNS]
        self.bar = Progress(BarColumn(bar_width=18), TextColumn("{task.fields[place]}"), *fields,
                            TextColumn("ETA"), TimeRemainingColumn(compact=True),
                            console=self.console, disable=not self.live)
        texts: dict[str, Any] = dict.fromkeys(("place", *_COLUMNS), "")
        self.task = self.bar.add_task("train", total=total, **texts)
        self.bar.update(self.task, completed=done)

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.bar.stop()

    def show(self, done: float, place: str, row: dict[str, Any], eta: float) -> None:
        """A log point: `place` names where the run is, `eta` is in seconds."""
        texts: dict[str, Any] = numbers(row)
        self.bar.update(self.task, completed=done, place=place, **texts)
        if not self.live:
            self.say("  ".join([place, *texts.values(), f"ETA {duration(eta)}"]))

    def say(self, text: str) -> None:
        """A remark that stays above the bar. Nobody reading any more is no reason to stop."""
        with contextlib.suppress(OSError):
            if self.live:
                self.console.print(text, highlight=False, soft_wrap=True, markup=False)
            else:
                print(text, file=sys.stderr, flush=True)
