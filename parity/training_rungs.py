"""The rungs of training: one optimizer step, a trajectory, checkpoints carried across."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from parity.budget import FACTOR, NUDGES, ROUNDOFF, Figures, distance, norm
from parity.cases import Case, random_case
from parity.rungs import same_bits
from parity.subject import Measure, Subject, Trial, compare
from specs.backend import Arrays, Backend, Batch, Dtype, OptimizerSettings
from specs.base import Spec
from specs.init import philox
from train import checkpoint

Kind = Literal["adamw", "muon"]
RATES: dict[Kind, float] = {"adamw": 3e-3, "muon": 2e-2}
STEPS = 20


@dataclass(frozen=True)
class Course:
    """What a stretch of training ends with, and its loss at each step."""

    losses: list[float]
    weights: Arrays
    state: Arrays

    def figures(self) -> Figures:
        losses = {f"loss {i + 1}": np.array(loss) for i, loss in enumerate(self.losses)}
        return {**losses, **self.weights}


def train(spec: Spec, backend: Backend, dtype: Dtype, weights: Arrays, kind: Kind, steps: range,
          seed: int, state: Arrays | None = None) -> Course:
    """Train on four batches in turn, so that there is something to learn, with a warm-up."""
    model = backend.build(spec, weights, dtype)
    trainer = backend.trainer(model, OptimizerSettings(optimizer=kind, grad_clip=0.5))
    if state is not None:
        trainer.load_state(state)
    for step in steps:
        batch = random_case(spec, 3, 16, seed + step % 4, dropout=spec.dropout > 0).batch
        trainer.step([batch] if dtype == "float64" else split(batch),
                     RATES[kind] * min(1.0, (step + 1) / 5))
    return Course(trainer.read().losses, backend.weights(model), trainer.state())


def split(batch: Batch) -> list[Batch]:
    """Micro-batches of unequal size. The referee takes the whole, so that a wrong mean shows."""
    cuts = [slice(0, -1), slice(-1, None)]
    return [Batch(batch.tokens[cut], batch.targets[cut],
                  None if batch.keys is None else batch.keys[cut]) for cut in cuts]


def optimizer_step(subject: Subject) -> Iterator[Measure]:
    """One update, from an empty optimizer state and from that of three steps before.

    Compared are the changes of the weights, the new state and the gradient norm.
    """
    whole = random_case(subject.spec, 4, 24, subject.seed)
    for kind, steps in itertools.product(RATES, (0, 3)):
        start = subject.weights
        if steps:
            course = train(subject.spec, subject.referee, "float64", subject.weights, kind,
                           range(steps), subject.seed)
            start = {name: value.astype(np.float32) if value.dtype.kind == "f" else value
                     for name, value in {**course.weights, **course.state}.items()}
        case = Case(f"{kind} {steps + 1}", whole.batch)
        floor = stored_rounding(subject.weights)
        yield from determined(compare(subject, case, update(kind), start, floor))


def update(kind: Kind) -> Callable[[Trial], Figures]:
    def read(trial: Trial) -> Figures:
        before = trial.backend.weights(trial.model)
        state = {name: value for name, value in trial.start.items() if name not in before}
        trainer = trial.backend.trainer(trial.model, OptimizerSettings(kind, grad_clip=0.5))
        if state:
            trainer.load_state(state)
        trainer.step([trial.batch] if trial.is_referee else split(trial.batch), RATES[kind])
        progress, after = trainer.read(), trial.backend.weights(trial.model)
        changes = {name: after[name].astype(np.float64) - before[name] for name in before}
        return {**changes, **trainer.state(), "gradient norm": np.array(progress.grad_norms)}

    return read


def stored_rounding(weights: Arrays) -> Callable[[Figures], dict[str, float]]:
    """Least room after a step: weights are stored in float32, and a state (m, v, momentum)
    inherits the rounding of the whole gradient, as in `rungs.whole_gradient`."""
    def floor(truth: Figures) -> dict[str, float]:
        kinds = {name: name.partition(".")[0] for name in truth}
        whole = {kind: norm(np.array([norm(truth[name]) for name in truth if kinds[name] == kind]))
                 for kind in kinds.values()}
        return {name: ROUNDOFF * (norm(weights[name]) if name in weights else whole[kind])
                for name, kind in kinds.items()}

    return floor


def determined(measures: Iterator[Measure]) -> Iterator[Measure]:
    """All but the changes of weights whose gradient is lost in rounding.

    Adam divides by the gradient's own size, so one that is zero by mathematics (a softmax
    attention's key bias) moves its weight by rounding noise alone.
    """
    found = {measure.name: measure for measure in measures}
    for name, measure in found.items():
        moment = found.get(f"m.{name}", found.get(f"momentum.{name}", measure))
        if moment is measure or moment.size > moment.budget:
            yield measure


@dataclass(frozen=True)
class Chaos:
    """A trajectory on all sides, and the room that its own instability gives: how far PyTorch
    parts from itself when its start is one ulp aside."""

    truth: Figures
    found: Mapping[str, Figures]
    budget: Mapping[str, float]
    parting: float


@functools.lru_cache(maxsize=2)
def chaos(subject: Subject, kind: Kind) -> Chaos:
    def run(backend: Backend, dtype: Dtype = "float32", weights: Arrays = subject.weights,
            ) -> Figures:
        return train(subject.spec, backend, dtype, weights, kind, range(STEPS),
                     subject.seed).figures()

    truth = run(subject.referee, "float64")
    found = {name: run(panel) for name, panel in subject.panels.items()}
    twins = [run(subject.panels["torch"], weights=one_ulp_aside(subject.weights, subject.seed, k))
             for k in range(NUDGES)]
    budget = {name: FACTOR * max(ROUNDOFF * norm(value), *(
        distance(twin[name], found["torch"][name]) for twin in twins))
        for name, value in truth.items()}
    parting = max(apart(twin, found["torch"]) for twin in twins)
    return Chaos(truth, found, budget, parting)


def one_ulp_aside(weights: Arrays, seed: int, k: int) -> Arrays:
    """Every weight replaced by the next float32 above or below it."""
    rng = np.random.Generator(philox(seed, "ulp", k))
    ends = np.array([-np.inf, np.inf], np.float32)
    return {name: np.nextafter(w, rng.choice(ends, w.shape))
            for name, w in weights.items()}


def apart(one: Figures, other: Figures) -> float:
    """Distance of all weights and losses together."""
    return norm(np.array([distance(one[name], other[name]) for name in one]))


def trajectory(subject: Subject) -> Iterator[Measure]:
    """A stretch of training: the losses, the last weights, and how far MLX parts from PyTorch
    ("parting"; beside it how far PyTorch parts from itself)."""
    for kind in RATES:
        case = Case(f"{kind}, {STEPS} steps", random_case(subject.spec, 3, 16, subject.seed).batch)
        course = chaos(subject, kind)
        for name, truth in course.truth.items():
            errors = {panel: distance(figures[name], truth)
                      for panel, figures in course.found.items()}
            yield Measure(case, name, norm(truth), course.budget[name], errors)
        partings = {"mlx": apart(course.found["mlx"], course.found["torch"]),
                    "torch": course.parting}
        yield Measure(case, "parting", apart(course.truth, course.truth),
                      FACTOR * course.parting, partings)


def resume(subject: Subject) -> Iterator[Measure]:
    """Half of the trajectory on one panel, a checkpoint, the other half on the other panel.

    The checkpoint arrives bit for bit; then the panel that wrote it ends where it would have
    ended unbroken, bit for bit, and the other one within the trajectory's budget.
    """
    first, second = range(STEPS // 2), range(STEPS // 2, STEPS)
    for kind, (writer, reader) in itertools.product(
            RATES, itertools.product(subject.panels, repeat=2)):
        case = Case(f"{kind}, {writer} → {reader}",
                    random_case(subject.spec, 3, 16, subject.seed).batch)
        run = functools.partial(train, subject.spec, dtype="float32", kind=kind, seed=subject.seed)
        written = run(subject.panels[writer], weights=subject.weights, steps=first)
        loaded = through_a_file(written, writer)
        go_on = functools.partial(run, subject.panels[reader], weights=loaded.weights,
                                  state=loaded.state)
        arrived = go_on(steps=range(0))
        for name, value in {**written.weights, **written.state}.items():
            same = same_bits({**arrived.weights, **arrived.state}.get(name), value)
            yield Measure(case, f"{name} as loaded", norm(value), 0.0,
                          {reader: 0.0 if same else np.inf})
        unbroken, ended = chaos(subject, kind), go_on(steps=second).weights
        for name, value in ended.items():
            truth = unbroken.found[reader][name] if reader == writer else unbroken.truth[name]
            budget = 0.0 if reader == writer else unbroken.budget[name]
            yield Measure(case, name, norm(truth), budget, {reader: distance(value, truth)})


def through_a_file(course: Course, backend: str) -> Course:
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.save(Path(folder), checkpoint.TrainState(step=len(course.losses)),
                               course.weights, course.state, backend)
        _, (weights, state) = checkpoint.load(path)
    return Course(course.losses, weights, state)
