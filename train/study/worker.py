"""One arm of an experiment in a process of its own: a JSON task comes as a line of standard input,
its figures leave as the last line of standard output.

Standard input stays open as long as somebody waits for the figures. Where it ends the training
saves and ends too, as after Ctrl-C.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from typing import Any

from specs import UserError
from specs.backend import Backend, OptimizerSettings, load_backend
from specs.errors import lacking
from train import checkpoint, metrics
from train import run as training
from train.batches import validation_windows
from train.data import find, require_length
from train.options import new_settings, new_spec, parser
from train.rundir import RUNS, RunDir
from train.study.faults import planted
from train.study.plan import HELD_OUT
from train.study.probe import probe

ENDINGS = {1: "diverged", 130: "interrupted"}


def perform(task: dict[str, Any]) -> dict[str, Any]:
    """Figures of an arm: `words` for train/run.py, the `name` of its run, or None for a probe."""
    if "measure" in task:
        return measured(task)
    device = ["--device", task["device"]] if task["device"] else []
    words = [*task["words"], "--backend", task["backend"], *device]
    if task["name"] is None:
        args = parser().parse_args(words)
        backend = load_backend(task["backend"], task["device"])
        return probe(backend, new_spec(args, task["vocab_size"])[0], new_settings(args),
                     task["contexts"])
    with planted(task["faults"], task["backend"], parser().parse_args(words).arch):
        code = trained(task["name"], words)
    if code:
        return {"error": ENDINGS[code]}
    run = RunDir.open(task["name"])
    found = figures(run)
    if task["lengths"]:
        found["read"] = read(load_backend(task["backend"], task["device"]), run, task["lengths"])
    return found


def measured(task: dict[str, Any]) -> dict[str, Any]:
    """What the function at `measure`, "module:name", finds of the `cases`, words by name."""
    module, _, name = task["measure"].partition(":")
    args = {each: parser().parse_args(words) for each, words in task["cases"].items()}
    cases = {each: (new_spec(arg, task["vocab_size"])[0], new_settings(arg))
             for each, arg in args.items()}
    take = getattr(importlib.import_module(module), name)
    return take(load_backend(task["backend"], task["device"]), cases)


def trained(name: str, words: list[str]) -> int:
    """Begin a run or go on with it to its end; the exit code of train/run.py."""
    if not (RUNS / name / "config.json").is_file():
        return training.main([*words, "--name", name])
    if finished(RunDir.open(name)):
        return 0
    return training.main(["--resume", name, *words[words.index("--backend"):]])


def finished(run: RunDir) -> bool:
    settings, state = run.settings, checkpoint.load_last(run.path, ())[0]
    return state.step >= settings.steps if settings.steps is not None else (
        state.elapsed >= 60 * (settings.minutes or 0))


def figures(run: RunDir) -> dict[str, Any]:
    """What a finished run shows: held-out loss and accuracy at its end, training loss, updates,
    tokens, tokens/s, and with what it was measured."""
    rows = metrics.read(run.metrics)
    held_out = [row for row in rows if "val_loss" in row][-1]
    trained = [row for row in rows if "tokens" in row]
    if held_out["val_loss"] is None:
        return {"error": "diverged"}
    return {"loss": held_out["val_loss"], "bpb": held_out["val_bpb"],
            "accuracy": held_out["val_accuracy"], "training": trained[-1]["loss"],
            "updates": trained[-1]["step"], "tokens": trained[-1]["tokens"],
            "skipped": trained[-1]["skipped"],
            "rate": (metrics.mean_rate if run.settings.seq_curriculum else metrics.rate)(rows),
            "curve": [[row["step"], row["val_loss"]] for row in rows if row.get("val_loss")],
            "versions": run.config["versions"]}


def read(backend: Backend, run: RunDir, lengths: list[int]) -> dict[str, float]:
    """Held-out loss in nats on windows of each of `lengths`. Raises `UserError` where the text is
    too short for one."""
    corpus = find(run.path, run.config["corpus"]["fingerprint"], training.recipe(run))
    require_length(corpus, max(lengths))
    trainer = backend.trainer(backend.build(run.spec, run.weights()), OptimizerSettings())
    found = {}
    for length in lengths:
        tokens, targets = validation_windows(corpus, length, max(1, HELD_OUT // length))
        nats = sum(trainer.evaluate(tokens[i:i + 1], targets[i:i + 1])[0]
                   for i in range(len(tokens)))
        found[str(length)] = nats / targets.size
    return found


def end_with_the_asker() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_the_asker, daemon=True).start()
    try:
        found = perform(task)
    except UserError as error:
        found = {"error": str(error)}
    except (MemoryError, RuntimeError) as error:
        lacked = lacking(error)
        if lacked is None:
            raise
        found = {"error": lacked}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
