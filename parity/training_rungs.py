"""The rungs of whole training runs: a trajectory, and checkpoints carried across."""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity.budget import FACTOR, ROUNDOFF, Figures, distance, norm, nudged
from parity.cases import Case, random_case
from parity.courses import RATES, Course, Kind, one_ulp_aside, train
from parity.rungs import same_bits
from parity.subject import Measure, Subject
from specs.backend import Arrays
from train import checkpoint

STEPS = 12
FIRST, SECOND = range(STEPS // 2), range(STEPS // 2, STEPS)
STARTS = 4


@dataclass(frozen=True)
class Leg:
    """A trajectory from one start: on the referee, on each panel to its half and to its end; and
    PyTorch's `twin`, whose start is one ulp aside."""

    start: Arrays
    truth: Figures
    halves: Mapping[str, Course]
    ends: Mapping[str, Figures]
    twin: Figures


@functools.lru_cache(maxsize=STARTS * len(RATES))
def leg(subject: Subject, kind: Kind, number: int) -> Leg:
    run = functools.partial(train, subject.spec, kind=kind, seed=subject.seed)
    whole = functools.partial(run, steps=range(STEPS))
    aside = next(itertools.islice(nudged(subject.weights, subject.seed), number, None))
    start = {name: value.astype(np.float32) for name, value in aside.items()}
    halves = {name: run(panel, "float32", start=start, steps=FIRST)
              for name, panel in subject.panels.items()}
    return Leg(
        start, halves=halves, truth=whole(subject.referee, "float64", start=start).figures(),
        ends={name: run(panel, "float32", start=halves[name], steps=SECOND).figures()
              for name, panel in subject.panels.items()},
        twin=whole(subject.panels["torch"], "float32",
                   start=one_ulp_aside(start, subject.seed)).figures())


def settled(subject: Subject, kind: Kind,
            measure: Callable[[list[Leg]], list[Measure]]) -> list[Measure]:
    """`measure` of one start, or of all where one is not enough.

    The budget is the model's own chaos: how far PyTorch parts from itself when a start is moved
    by one ulp. Where rounding flips a ReLU, Adam makes a full step of what was no gradient before,
    and that run leaves all others: so the worst of the twins makes the budget, and the best of
    the starts is held against it. What one start is enough for, more would not refuse.
    """
    found: list[Measure] = []
    for count in (1, STARTS):
        found = measure([leg(subject, kind, number) for number in range(count)])
        if all(each.worst <= 1 for each in found):
            break
    return found


def against(legs: Sequence[Leg], case: Case,
            ends: Mapping[str, Sequence[Figures]]) -> Iterator[Measure]:
    """How far from the referee each panel's `ends` of these legs are."""
    for name, truth in legs[0].truth.items():
        chaos = max(distance(leg.twin[name], leg.ends["torch"][name]) for leg in legs)
        errors = {panel: min(distance(end[name], leg.truth[name])
                             for end, leg in zip(found, legs, strict=True))
                  for panel, found in ends.items()}
        yield Measure(case, name, norm(truth), FACTOR * (ROUNDOFF * norm(truth) + chaos), errors)


def trajectory(subject: Subject) -> Iterator[Measure]:
    """Training: the loss at each step, the last weights, and how far MLX parts from PyTorch
    ("parting"; beside it how far PyTorch parts from itself)."""
    for kind in RATES:
        yield from settled(subject, kind, functools.partial(trained, course_case(subject, kind)))


def trained(case: Case, legs: list[Leg]) -> list[Measure]:
    ends = {name: [leg.ends[name] for leg in legs] for name in legs[0].ends}
    across, own = ([apart(*pair) for pair in zip(other, ends["torch"], strict=True)]
                   for other in (ends["mlx"], [leg.twin for leg in legs]))
    size = math.hypot(*map(norm, legs[0].truth.values()))
    return [*against(legs, case, ends),
            Measure(case, "parting", size, FACTOR * max(own),
                    {"mlx": min(across), "torch": min(own)})]


def resume(subject: Subject) -> Iterator[Measure]:
    """Half of the trajectory on one panel, a checkpoint, the other half on either.

    The checkpoint arrives bit for bit. On a CPU the panel that wrote it ends where it would have
    ended unbroken, bit for bit; the other one, and a GPU, whose sums have no fixed order, within
    the trajectory's budget.
    """
    for kind, (writer, reader) in itertools.product(
            RATES, itertools.product(subject.panels, repeat=2)):
        case, first = course_case(subject, f"{kind} {writer} → {reader}"), leg(subject, kind, 0)
        run = functools.partial(train, subject.spec, subject.panels[reader], "float32", kind,
                                seed=subject.seed)
        loaded = through_a_file(first.halves[writer], writer)
        arrived = run(start=loaded, steps=range(0))
        for name, value in everything(first.halves[writer]).items():
            same = same_bits(everything(arrived).get(name), value)
            yield Measure(case, f"{name} as loaded", norm(value), 0.0,
                          {reader: 0.0 if same else np.inf})
        if writer == reader and subject.panels[reader].device == "cpu":
            unbroken = run(start=first.start, steps=range(STEPS)).figures()
            resumed = run(start=loaded, steps=SECOND).figures()
            for name, value in unbroken.items():
                yield Measure(case, name, norm(value), 0.0,
                              {reader: distance(resumed[name], value)})
        else:
            yield from settled(subject, kind,
                               functools.partial(carried, case, run, writer, reader))


def carried(case: Case, run: Callable[..., Course], writer: str, reader: str,
            legs: list[Leg]) -> list[Measure]:
    halves = [through_a_file(leg.halves[writer], writer) for leg in legs]
    ends = [run(start=half, steps=SECOND).figures() for half in halves]
    return list(against(legs, case, {reader: ends}))


def course_case(subject: Subject, name: str) -> Case:
    return Case(name, random_case(subject.spec, 3, 8, subject.seed).batch)


def through_a_file(course: Course, backend: str) -> Course:
    """The course as it comes back from a checkpoint on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.save(Path(folder), checkpoint.TrainState(step=len(course.losses)),
                               course.weights, course.state, {"backend": backend})
        _, (weights, state) = checkpoint.load(path)
    return Course(course.losses, weights, state)


def everything(course: Course) -> Arrays:
    return {**course.weights, **course.state}


def apart(one: Figures, other: Figures) -> float:
    """Distance of all weights and losses together."""
    return math.hypot(*(distance(one[name], other[name]) for name in one))
