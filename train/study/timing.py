"""What one thing costs beside another: done in turn, warm-up left out.

A machine that others use is slow and fast by turns: what stands side by side in time sees the same
of it, so ratios are taken round by round. Trainings have a process each, for a framework's threads
and caches are a process's: one model would run as the other needs them.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import numpy as np

from specs import Spec, UserError, init_weights, spec_type
from specs.backend import Backend, Batch, load_backend
from train.batches import batch, prefetch
from train.run import make_trainer, prepared
from train.settings import Settings
from train.study.probe import random_batches

SECONDS = 6.0  # of all rounds together
ROUNDS = (5, 40)  # at least and at most
WARM = 2  # rounds that are left out
PAUSE = 0.03  # seconds after which the threads of one have gone to sleep and leave the cores
Cases = Mapping[str, tuple[Spec, Settings]]
Figures = dict[str, Any]
Work = Callable[[], object]  # waits until it is done
Maker = Callable[[Backend, Spec, Settings], Work]


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


def in_turn(works: Mapping[str, Work], rounds: tuple[int, int] | None = None,
            ) -> dict[str, list[float]]:
    """Seconds of each, round by round; at least and at most so many rounds."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(WARM):
        for work in works.values():
            work()
    begun, least, most = time.perf_counter(), *(rounds or ROUNDS)
    for number in range(most):
        if number >= least and time.perf_counter() - begun > SECONDS:
            break
        for name, work in works.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - start)
    return found


def compared(works: Mapping[str, Work]) -> Figures:
    """Median seconds of each, and of two, how often the first goes into the second: the median
    over the rounds with its quartiles."""
    found = in_turn(works)
    figures: Figures = {"seconds": {name: median(values) for name, values in found.items()}}
    if len(found) == 2:
        pairs = zip(*found.values(), strict=True)
        figures["faster"] = quartiles([second / first for first, second in pairs])
    return figures


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"middle": middle, "low": low, "high": high}


def stepper(backend: Backend, spec: Spec, settings: Settings) -> Work:
    """One training step, always on the same random tokens."""
    trainer = make_trainer(spec, settings, backend, init_weights(spec, settings.seed))[1]
    batches = random_batches(spec, settings)

    def work() -> object:
        trainer.step(batches, settings.lr)
        return trainer.read()

    return work


def steps(backend: Backend, cases: Cases) -> Figures:
    """Training steps of each case, and the tokens of each."""
    tokens = {name: settings.batch_size * spec.block_size
              for name, (spec, settings) in cases.items()}
    with ExitStack() as stack:
        works = {name: stack.enter_context(elsewhere(backend, *case))
                 for name, case in cases.items()}
        return {**compared(works), "tokens": tokens}


@contextmanager
def elsewhere(backend: Backend, spec: Spec, settings: Settings, make: Maker = stepper,
              ) -> Iterator[Work]:
    """What `make` makes, in a process of its own. Raises `UserError` where that ends too early."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, daemon=True, args=(
        there, make, backend.name, backend.device, spec.arch, spec.to_dict(), settings.to_dict()))
    process.start()
    there.close()

    def work() -> object:
        try:
            here.send("step")
            return here.recv()
        except (EOFError, OSError):
            raise UserError("the process of a step ended: is there enough memory?") from None

    try:
        yield work
    finally:
        here.close()
        process.join()


def serve(asked: Any, make: Maker, name: str, device: str, arch: str, spec: dict[str, Any],
          settings: dict[str, Any]) -> None:
    """A step for each message, until nobody is there to send one."""
    work = make(load_backend(name, device), spec_type(arch).from_dict(spec),
                Settings.from_dict(settings))
    try:
        while asked.recv():
            work()
            asked.send("done")
    except EOFError:
        pass


def generation(backend: Backend, cases: Cases) -> Figures:
    """One more token of one sequence, from what decoding keeps and by reading all again, behind a
    quarter of the window, the window, and four of them."""
    [(spec, settings)] = cases.values()
    model = backend.build(spec, init_weights(spec, settings.seed))
    found: Figures = {}
    for length in (spec.block_size // 4, spec.block_size, 4 * spec.block_size):
        text = np.random.default_rng(0).integers(0, spec.vocab_size, (1, length)).astype(np.int32)
        decoder = backend.decoder(model, 1, length + WARM + ROUNDS[1])
        decoder.read(text)
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
