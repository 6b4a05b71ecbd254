"""The rungs of whole training runs: a trajectory, and checkpoints carried across."""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from parity.budget import FACTOR, ROUNDOFF, Figures, distance, norm
from parity.cases import Case, random_case
from parity.courses import RATES, Course, Kind, one_ulp_aside, train
from parity.rungs import same_bits
from parity.subject import Measure, Subject
from specs.backend import Arrays
from train import checkpoint

STEPS = 16
FIRST, SECOND = range(STEPS // 2), range(STEPS // 2, STEPS)
STARTS = 4


@dataclass(frozen=True)
class Chaos:
    """A trajectory on the referee; on each panel from four starts that are one ulp aside, to its
    half and to its end; and the room that it needs.

    The budget is the model's own chaos: how far PyTorch's runs part from each other (the median
    of all pairs). Of a panel's runs the closest to the referee counts: where rounding flips a
    ReLU, Adam makes a full step of what was no gradient before, and that run leaves all others.
    """

    truth: Figures
    halves: Mapping[str, list[Course]]
    ends: Mapping[str, list[Figures]]
    budget: Mapping[str, float]


@functools.lru_cache(maxsize=len(RATES))
def chaos(subject: Subject, kind: Kind) -> Chaos:
    run = functools.partial(train, subject.spec, kind=kind, seed=subject.seed)
    exact = run(subject.referee, "float64", start=subject.weights, steps=range(STEPS)).figures()
    starts = [one_ulp_aside(subject.weights, subject.seed, k) for k in range(STARTS)]
    halves = {name: [run(panel, "float32", start=start, steps=FIRST) for start in starts]
              for name, panel in subject.panels.items()}
    ends = {name: [run(panel, "float32", start=half, steps=SECOND).figures()
                   for half in halves[name]] for name, panel in subject.panels.items()}
    pairs = list(itertools.combinations(ends["torch"], 2))
    budget = {name: FACTOR * (ROUNDOFF * norm(truth) + median(
        distance(one[name], other[name]) for one, other in pairs))
        for name, truth in exact.items()}
    return Chaos(exact, halves, ends, budget)


def closest(ends: list[Figures], name: str, truth: np.ndarray) -> float:
    return min(distance(figures[name], truth) for figures in ends)


def trajectory(subject: Subject) -> Iterator[Measure]:
    """Training: the loss at each step, the last weights, and how far MLX parts from PyTorch
    ("parting"; beside it how far PyTorch parts from itself)."""
    for kind in RATES:
        case, course = course_case(subject, kind), chaos(subject, kind)
        for name, truth in course.truth.items():
            errors = {panel: closest(ends, name, truth) for panel, ends in course.ends.items()}
            yield Measure(case, name, norm(truth), course.budget[name], errors)
        own = [apart(*pair) for pair in itertools.combinations(course.ends["torch"], 2)]
        across = [apart(*pair) for pair in itertools.product(*course.ends.values())]
        size = math.hypot(*map(norm, course.truth.values()))
        yield Measure(case, "parting", size, FACTOR * median(own),
                      {"mlx": min(across), "torch": min(own)})


def resume(subject: Subject) -> Iterator[Measure]:
    """Half of the trajectory on one panel, a checkpoint, the other half on either.

    The checkpoint arrives bit for bit. The panel that wrote it ends where it would have ended
    unbroken, bit for bit, and the other one within the trajectory's budget.
    """
    for kind, (writer, reader) in itertools.product(
            RATES, itertools.product(subject.panels, repeat=2)):
        case, course = course_case(subject, f"{kind} {writer} → {reader}"), chaos(subject, kind)
        run = functools.partial(train, subject.spec, subject.panels[reader], "float32", kind,
                                seed=subject.seed)
        loaded = [through_a_file(half, writer) for half in course.halves[writer]]
        arrived = run(start=loaded[0], steps=range(0))
        for name, value in everything(course.halves[writer][0]).items():
            same = same_bits(everything(arrived).get(name), value)
            yield Measure(case, f"{name} as loaded", norm(value), 0.0,
                          {reader: 0.0 if same else np.inf})
        if writer == reader:
            start = one_ulp_aside(subject.weights, subject.seed, 0)
            truth, loaded = run(start=start, steps=range(STEPS)).figures(), loaded[:1]
        else:
            truth = course.truth
        ends = [run(start=half, steps=SECOND).figures() for half in loaded]
        for name, value in truth.items():
            yield Measure(case, name, norm(value), course.budget[name] * (writer != reader),
                          {reader: closest(ends, name, value)})


def course_case(subject: Subject, name: str) -> Case:
    return Case(name, random_case(subject.spec, 3, 16, subject.seed).batch)


def through_a_file(course: Course, backend: str) -> Course:
    """The course as it comes back from a checkpoint on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.save(Path(folder), checkpoint.TrainState(step=len(course.losses)),
                               course.weights, course.state, backend)
        _, (weights, state) = checkpoint.load(path)
    return Course(course.losses, weights, state)


def everything(course: Course) -> Arrays:
    return {**course.weights, **course.state}


def apart(one: Figures, other: Figures) -> float:
    """Distance of all weights and losses together."""
    return math.hypot(*(distance(one[name], other[name]) for name in one))
