"""Short training runs, for the rungs that follow one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from parity.budget import Figures
from parity.cases import random_case
from specs.backend import Arrays, Backend, Batch, Dtype, OptimizerSettings
from specs.base import Spec
from specs.init import philox

Kind = Literal["adamw", "muon"]
RATES: dict[Kind, float] = {"adamw": 1e-3, "muon": 5e-3}


def settings(kind: Kind) -> OptimizerSettings:
    return OptimizerSettings(optimizer=kind, grad_clip=0.5)


@dataclass(frozen=True)
class Course:
    """What a stretch of training ends with, and its loss at each step."""

    losses: tuple[float, ...]
    weights: Arrays
    state: Arrays

    def figures(self) -> Figures:
        losses = {f"loss {i + 1}": np.array(loss) for i, loss in enumerate(self.losses)}
        return {**losses, **self.weights}


def train(spec: Spec, backend: Backend, dtype: Dtype, kind: Kind, start: Course | Arrays,
          steps: range, seed: int) -> Course:
    """Go on from `start` (weights, or a course) for `steps`.

    There are four batches in turn, so that there is something to learn, and a warm-up.
    """
    course = start if isinstance(start, Course) else Course((), start, {})
    model = backend.build(spec, course.weights, dtype)
    trainer = backend.trainer(model, settings(kind))
    if course.state:
        trainer.load_state(course.state)
    for step in steps:
        batch = random_case(spec, 3, 8, seed + step % 4, dropout=spec.noisy).batch
        trainer.step([batch] if dtype == "float64" else split(batch),
                     RATES[kind] * min(1.0, (step + 1) / 5))
    losses = (*course.losses, *trainer.read().losses)
    return Course(losses, backend.weights(model), trainer.state())


def split(batch: Batch) -> list[Batch]:
    """Micro-batches of unequal size. The referee takes the whole, so that a wrong mean shows."""
    cuts = [slice(0, -1), slice(-1, None)]
    return [Batch(batch.tokens[cut], batch.targets[cut],
                  None if batch.keys is None else batch.keys[cut]) for cut in cuts]


def one_ulp_aside(weights: Arrays, seed: int) -> Arrays:
    """Every weight replaced by the next float32 above or below it."""
    rng = np.random.Generator(philox(seed, "ulp"))
    ends = np.array([-np.inf, np.inf], np.float32)
    return {name: np.nextafter(w, rng.choice(ends, w.shape)) for name, w in weights.items()}
