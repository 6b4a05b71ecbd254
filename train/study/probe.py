"""What a setup costs, apart from any training: memory of a step, time of a decoded token."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from specs import Spec, init_weights
from specs.backend import Backend, Batch, Model
from specs.machine import give_back
from train.batches import split
from train.run import make_trainer
from train.settings import Settings

DECODED = 16  # tokens timed at each context length


def probe(backend: Backend, spec: Spec, settings: Settings, contexts: list[int]) -> dict[str, Any]:
    """{"memory": bytes that model and training add to the process, or to the device, at their
    peak; "decoding": {context: tokens/s of one sequence behind so many tokens}}."""
    before = held_by_frameworks(backend, spec, settings)
    model = steps(backend, spec, settings)
    memory = backend.peak_memory() - before
    most = spec.max_length or max([*contexts, 0]) + DECODED
    return {"memory": max(1, memory), "decoding": {
        str(length): 1 / decode(backend, model, spec, length)
        for length in contexts if length + DECODED <= most}}


def steps(backend: Backend, spec: Spec, settings: Settings) -> Model:
    """A model after two steps on random tokens."""
    model, trainer = make_trainer(spec, settings, backend, init_weights(spec, settings.seed))
    batches = random_batches(spec, settings)
    for _ in range(2):
        trainer.step(batches, settings.lr)
        trainer.read()
    return model


def random_batches(spec: Spec, settings: Settings) -> list[Batch]:
    """The micro-batches of one step, of random tokens, always the same."""
    rows = np.random.default_rng(0).integers(
        0, spec.vocab_size, (settings.batch_size, spec.block_size + 1)).astype(np.int32)
    keys = np.arange(len(rows), dtype=np.int32) if spec.noisy else None
    return split(Batch(rows[:, :-1], rows[:, 1:], keys),
                 settings.micro_batch or settings.batch_size)


def held_by_frameworks(backend: Backend, spec: Spec, settings: Settings) -> int:
    """Bytes in use once a small model was trained: what frameworks load when they are first used
    is no part of training."""
    steps(backend, spec.replace(n_layer=1, block_size=8), settings)
    return held(backend)


def held(backend: Backend) -> int:
    """Bytes in use now, from which on the peak is counted."""
    give_back()
    backend.reset_peak_memory()
    return backend.peak_memory()


def decode(backend: Backend, model: Model, spec: Spec, length: int) -> float:
    """Median seconds of one token of one sequence behind `length` others."""
    prompt = np.random.default_rng(1).integers(0, spec.vocab_size, (1, length)).astype(np.int32)
    decoder = backend.decoder(model, 1, length + DECODED)
    decoder.read(prompt)
    times = []
    for _ in range(DECODED):
        start = time.perf_counter()
        decoder.step(prompt[:, 0])
        times.append(time.perf_counter() - start)
    return median(times[1:])
