"""The rung of one optimizer step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from parity.budget import ROUNDOFF, Figures, distance, norm
from parity.cases import Case, random_case
from parity.courses import RATES, Kind, settings, split, train
from parity.subject import Measure, Subject, Trial, attempt, compare
from specs.backend import Arrays
from specs.init import philox


def optimizer_step(subject: Subject) -> Iterator[Measure]:
    """One update, from an empty optimizer state and from that of three steps before.

    Compared are the changes of the weights, the new state and the gradient norm.
    """
    whole = random_case(subject.spec, 4, 24, subject.seed)
    for kind, steps in itertools.product(RATES, (0, 3)):
        course = train(subject.spec, subject.referee, "float64", kind, subject.weights,
                       range(steps), subject.seed)
        start = {name: value.astype(np.float32) if value.dtype.kind == "f" else value
                 for name, value in {**course.weights, **course.state}.items()}
        case = Case(f"{kind} {steps + 1}", whole.batch)
        floor = update_rounding(subject, case, kind, start)
        yield from determined(compare(subject, case, update(kind), start, floor))


def update(kind: Kind) -> Callable[[Trial], Figures]:
    def read(trial: Trial) -> Figures:
        before = trial.backend.weights(trial.model)
        state = {name: value for name, value in trial.start.items() if name not in before}
        trainer = trial.backend.trainer(trial.model, settings(kind))
        trainer.load_state(state)
        trainer.step([trial.batch] if trial.is_referee else split(trial.batch), RATES[kind])
        progress, after = trainer.read(), trial.backend.weights(trial.model)
        changes = {name: after[name].astype(np.float64) - before[name] for name in before}
        return {**changes, **trainer.state(), "gradient norm": np.array(progress.grad_norms)}

    return read


def update_rounding(subject: Subject, case: Case, kind: Kind,
                    start: Arrays) -> Callable[[Figures], dict[str, float]]:
    """Least room after a step. Weights are stored in float32. A state (m, v, momentum) inherits
    the rounding of the whole gradient, as in `rungs.whole_gradient`; and what that noise does to
    a weight is found by putting it into the state before: Adam and Muon divide by the
    gradient's size, and enlarge the noise where there is little else."""
    def floor(truth: Figures) -> dict[str, float]:
        kinds = {name: name.partition(".")[0] for name in truth}
        whole = {kind: norm(np.array([norm(truth[name]) for name in truth if kinds[name] == kind]))
                 for kind in kinds.values()}
        noisy = dict(start)
        for name in truth:
            if kinds[name] in ("m", "momentum"):
                rng = np.random.Generator(philox(subject.seed, "noise", name))
                noise = rng.standard_normal(truth[name].shape)
                noisy[name] = start[name] + noise * (ROUNDOFF * whole[kinds[name]] / norm(noise))
        moved = update(kind)(attempt(subject.spec, subject.referee, "float64", case.batch, noisy))
        return {name: ROUNDOFF * norm(subject.weights[name]) + distance(moved[name], truth[name])
                if name in subject.weights else ROUNDOFF * whole[kinds[name]] for name in truth}

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
