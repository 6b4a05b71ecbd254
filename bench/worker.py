"""One backend's share of bench/compare_backends.py, in a process of its own; prints JSON.

Every figure is in seconds for one call: a training step, a forward pass, a prefill, one decoded
token at each context length. Memory is that of the training step, measured first.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from specs import init_weights, spec_type
from specs.backend import Batch, OptimizerSettings, load_backend
from train.settings import Settings
from train.study.probe import decode, held_by_frameworks


def timed(work: Callable[[], object], seconds: float) -> float:
    """Median time of a call: after one that is not counted, at least three, for `seconds`."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """All figures of one backend for one architecture."""
    backend = load_backend(task["backend"], task["device"])
    spec = spec_type(task["arch"]).from_dict(task["spec"])
    weights = init_weights(spec)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, spec.vocab_size, (task["batch"], task["seq"] + 1)).astype(np.int32)
    batch = Batch(rows[:, :-1], rows[:, 1:])
    before = held_by_frameworks(backend, spec, Settings(batch_size=1))
    model = backend.build(spec, weights, task["dtype"])
    trainer = backend.trainer(model, OptimizerSettings())

    def step() -> None:
        trainer.step([batch], 1e-4)
        trainer.read()

    seconds = {"train": timed(step, task["seconds"])}
    memory = backend.peak_memory() - before
    seconds["forward"] = timed(lambda: backend.logits(model, batch.tokens), task["seconds"])
    seconds["prefill"] = timed(
        lambda: backend.decoder(model, 1, task["seq"]).prefill(rows[:1, :-1]), task["seconds"])
    for length in task["contexts"]:
        seconds[f"decode {length}"] = decode(backend, model, spec, length)
    return {"seconds": seconds, "memory": memory, "versions": backend.versions(),
            "matmul": backend.matmul_rate(task["dtype"]), "bandwidth": backend.bandwidth()}


if __name__ == "__main__":
    json.dump(measure(json.loads(sys.argv[1])), sys.stdout)
