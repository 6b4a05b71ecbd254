"""metrics.jsonl: one flat dict a line, written as the run goes, read by plots and people."""

from __future__ import annotations

import contextlib
import json
import math
import os
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from train.files import write_text


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a half line, as a kill leaves it, is passed over."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one line; what is not finite becomes null, since JSON has no word for it.

    Where there is no room for all of it, none of it stays.
    """
    clean = {key: None if isinstance(value, float) and not math.isfinite(value) else value
             for key, value in row.items()}
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, size)
        raise


def cut(path: Path, step: int) -> None:
    """Forget what was logged after `step`: a resumed run will log it again."""
    if path.exists():
        rows = [row for row in read(path) if row.get("step", 0) <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def mean_rate(rows: list[dict[str, Any]]) -> float:
    """Tokens/s over all log points but the first: for a run whose steps are not alike."""
    logged = [row for row in rows if "tokens_per_s" in row]
    if len(logged) < 2:
        return rate(rows)
    tokens = [after["tokens"] - before["tokens"] for before, after in pairwise(logged)]
    seconds = [count / row["tokens_per_s"] for count, row in zip(tokens, logged[1:], strict=True)]
    return sum(tokens) / sum(seconds)


def rate(rows: list[dict[str, Any]]) -> float:
    """Tokens/s: the median over the log points, but for the first, which also starts up."""
    rates = [row["tokens_per_s"] for row in rows if "tokens_per_s" in row]
    return median(rates[1:] or rates)
