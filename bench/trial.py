"""Trainings of bench/optimizations.py, in a process of their own: a JSON task on each line of
standard input, what it showed on each line of standard output.

Trained as by train/run.py, whose metrics are read. Memory is what training adds to the process
(on a GPU: to the device) at its peak.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from statistics import median
from typing import Any

from specs import UserError
from specs.backend import Backend, load_backend
from specs.errors import lacking
from train import metrics
from train import run as training
from train.batches import validation_windows
from train.options import parser


def measure(backend: Backend, task: dict[str, Any]) -> dict[str, Any]:
    """Tokens/s (median over the log points after the first), bytes, held-out loss in nats and, for
    each of `lengths`, that of windows of so many tokens."""
    args = parser().parse_args(task["arguments"])
    backend.reset_peak_memory()
    before = backend.peak_memory()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as locks:
        os.chdir(folder)
        os.environ["DIPTYCH_CACHE"] = folder
        loop = training.start(args, backend, locks)
        ending = loop.train()
        rows = metrics.read(loop.run.metrics)
        os.chdir("/")
    logged = [row for row in rows if "tokens_per_s" in row]
    rates = [row["tokens_per_s"] for row in logged]
    found = {"rate": median(rates[1:] or rates), "memory": logged[-1]["memory"] - before,
             "steps": loop.state.step, "skipped": loop.state.skipped, "ending": ending,
             "loss": next((row["val_loss"] for row in rows if "val_loss" in row), None)}
    for length in task["lengths"]:
        tokens, targets = validation_windows(loop.corpus, length, task["held_out"] // length)
        nats = sum(loop.trainer.evaluate(tokens[i:i + 1], targets[i:i + 1])[0]
                   for i in range(len(tokens)))
        found[f"loss {length}"] = nats / targets.size
    return found


def main() -> None:
    backend = None
    for line in sys.stdin:
        task = json.loads(line)
        try:
            backend = backend or load_backend(task["backend"], task["device"])
            found = {**measure(backend, task), "versions": backend.versions()}
        except UserError as error:
            found = {"error": str(error)}
        except (MemoryError, RuntimeError) as error:
            lacked = lacking(error)
            if lacked is None:
                raise
            found = {"error": lacked}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
