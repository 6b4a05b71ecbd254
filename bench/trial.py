"""Trainings of bench/optimizations.py, in a process of their own: a JSON task on each line of
standard input, what it showed on each line of standard output.

Trained as by train/run.py, whose metrics are read. Memory is what model and training add to the
process (on a GPU: to the device) at their peak. What frameworks load when they are first used is
no part of it: a training of a small model comes before.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from specs import UserError
from specs.backend import Backend, load_backend
from specs.errors import lacking
from train import metrics
from train import run as training
from train.batches import validation_windows
from train.loop import Loop
from train.options import parser
from train.plots import Rows
from train.study.probe import held

# In float32, since half precision is slow on many CPUs; compilers are loaded, nothing is compiled.
SMALL = ["--set", "n_layer=1", "--block-size", "8", "--dtype", "float32", "--steps"]


@contextmanager
def begun(backend: Backend, arguments: list[str]) -> Iterator[Loop]:
    """What train/run.py would train, in a folder that vanishes."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as locks:
        os.chdir(folder)
        os.environ["DIPTYCH_CACHE"] = folder
        try:
            yield training.start(parser().parse_args(arguments), backend, locks)
        finally:
            os.chdir("/")


def measure(backend: Backend, task: dict[str, Any]) -> dict[str, Any]:
    """Tokens/s (median over the log points after the first, once `seconds` were trained), bytes,
    held-out loss in nats and, for each of `lengths`, that of windows of so many tokens."""
    arguments = task["arguments"]
    if task["seconds"]:
        steps = "0" if "--compile" in arguments else "1"
        with begun(backend, [*arguments, *SMALL, steps]) as loop:
            loop.train()
        del loop
    before = held(backend)
    with begun(backend, arguments) as loop:
        held(backend)
        ending = loop.train()
        peaks = [row["memory"] for row in metrics.read(loop.run.metrics) if "memory" in row]
        rows = go_on(loop, task["seconds"])
    found = {"rate": metrics.rate(rows), "memory": max(1, peaks[-1] - before),
             "steps": loop.state.step, "skipped": loop.state.skipped, "ending": ending,
             "loss": next((row["val_loss"] for row in rows if "val_loss" in row), None)}
    for length in task["lengths"]:
        tokens, targets = validation_windows(loop.corpus, length, task["held_out"] // length)
        nats = sum(loop.trainer.evaluate(tokens[i:i + 1], targets[i:i + 1])[0]
                   for i in range(len(tokens)))
        found[f"loss {length}"] = nats / targets.size
    return found


def go_on(loop: Loop, seconds: float) -> Rows:
    """Train on for about so long, where the steps made took less; the metrics, from there on if
    there are more."""
    rows, done = metrics.read(loop.run.metrics), loop.state.step
    more = int(seconds * metrics.rate(rows) * done / loop.state.tokens)
    if more <= done:
        return rows
    loop.settings = replace(loop.settings, steps=done + more, log_every=max(1, more // 5),
                            eval_every=done + more, save_every=done + more)
    loop.train()
    return metrics.read(loop.run.metrics)[len(rows):]


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
