"""What one thing costs beside another: both in one process, in turn, warm-up left out.

A machine that others use is slow and fast by turns: what stands side by side in time sees the same
of it, so ratios are taken round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import numpy as np

from specs import Spec, init_weights
from specs.backend import Backend, Batch
from train.batches import batch, prefetch, split
from train.run import make_trainer, prepared
from train.settings import Settings

SECONDS = 6.0  # of all rounds together
ROUNDS = (5, 40)  # at least and at most
WARM = 2  # rounds that are left out
Cases = Mapping[str, tuple[Spec, Settings]]
Figures = dict[str, Any]
Work = Callable[[], object]  # waits until it is done


@dataclass(frozen=True)
class Measure:
    """`take(backend, cases)` finds figures of `setups`, by default on the experiment's backend."""

    take: Callable[[Backend, Cases], Figures]
    setups: tuple[str, ...]
    backend: str | None = None

    @property
    def place(self) -> str:
        """Where another process finds `take`."""
        return f"{self.take.__module__}:{self.take.__name__}"


def in_turn(works: Mapping[str, Work]) -> dict[str, list[float]]:
    """Seconds of each, round by round."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(WARM):
        for work in works.values():
            work()
    begun, least, most = time.perf_counter(), *ROUNDS
    for number in range(most):
        if number >= least and time.perf_counter() - begun > SECONDS:
            break
        for name, work in works.items():
            start = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - start)
    return found


def compared(works: Mapping[str, Work]) -> Figures:
    """Median seconds of each, and how often the first goes into the last: the median over the
    rounds with its quartiles."""
    found = in_turn(works)
    first, *_, last = found.values()
    return {"seconds": {name: median(values) for name, values in found.items()},
            "faster": quartiles([b / a for a, b in zip(first, last, strict=True)])}


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"middle": middle, "low": low, "high": high}


def stepper(backend: Backend, spec: Spec, settings: Settings) -> Work:
    """One training step, always on the same random tokens."""
    trainer = make_trainer(spec, settings, backend, init_weights(spec, settings.seed))[1]
    rows = np.random.default_rng(0).integers(
        0, spec.vocab_size, (settings.batch_size, spec.block_size + 1)).astype(np.int32)
    keys = np.arange(len(rows), dtype=np.int32) if spec.noisy else None
    batches = split(Batch(rows[:, :-1], rows[:, 1:], keys),
                    settings.micro_batch or settings.batch_size)

    def work() -> object:
        trainer.step(batches, settings.lr)
        return trainer.read()

    return work


def steps(backend: Backend, cases: Cases) -> Figures:
    """Training steps of each case, and the tokens of each."""
    works = {name: stepper(backend, *case) for name, case in cases.items()}
    return {**compared(works), "tokens": {
        name: settings.batch_size * spec.block_size for name, (spec, settings) in cases.items()}}


def generation(backend: Backend, cases: Cases) -> Figures:
    """One more token of one sequence, from what decoding keeps and by reading all again, behind a
    quarter of the window, the window, and four of them."""
    [(spec, settings)] = cases.values()
    model = backend.build(spec, init_weights(spec, settings.seed))
    found: Figures = {}
    for length in (spec.block_size // 4, spec.block_size, 4 * spec.block_size):
        text = np.random.default_rng(0).integers(0, spec.vocab_size, (1, length)).astype(np.int32)
        decoder = backend.decoder(model, 1, length + WARM + ROUNDS[1])
        decoder.prefill(text)
        found[str(length)] = compared({
            "kept": lambda decoder=decoder, text=text: decoder.step(text[:, 0]),  # type: ignore
            "anew": lambda text=text: backend.logits(model, text)})  # type: ignore[misc]
    return {"behind": found}


def loading(backend: Backend, cases: Cases) -> Figures:
    """Steps whose batch was made ahead, in a thread, beside steps that make theirs first; and the
    share of a step that making one takes, which is the most that can be gained."""
    [(spec, settings)] = cases.values()
    corpus = prepared(settings)[0]
    trainer = make_trainer(spec, settings, backend, init_weights(spec, settings.seed))[1]
    numbers = iter(range(10**9))

    def make(step: int) -> list[Batch]:
        return [batch(corpus, settings.seed, step, settings.batch_size, spec.block_size,
                      spec.noisy)]

    def train(batches: list[Batch]) -> object:
        trainer.step(batches, settings.lr)
        return trainer.read()

    ahead = prefetch(make, 0, 10**9)
    found = compared({"ahead": lambda: train(next(ahead)),
                      "first": lambda: train(make(next(numbers)))})
    ahead.close()  # type: ignore[attr-defined]
    making = median(in_turn({"": lambda: make(next(numbers))})[""])
    return {**found, "share": making / found["seconds"]["first"]}


def left_out(backend: Backend, cases: Cases) -> Figures:
    """How many of a few updates in float16 were left out, because a gradient was not finite, and
    the loss before the last."""
    made = {name: stepper(backend, spec, Settings.from_dict(
        {**settings.to_dict(), "dtype": "float16"})) for name, (spec, settings) in cases.items()}
    found = {}
    for name, work in made.items():
        progress: list[Any] = [work() for _ in range(ROUNDS[0])]
        found[name] = {"updates": len(progress), "loss": progress[-1].losses[-1],
                       "left_out": sum(not each.finite[-1] for each in progress)}
    return found
