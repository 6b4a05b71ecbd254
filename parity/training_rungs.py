"""The rungs of whole training runs: a trajectory, and checkpoints carried across."""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping
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
class Chaos:
    """A trajectory from four starts: on the referee, on each panel to its half and to its end;
    and the room that it needs.

    The budget is the model's own chaos: how far PyTorch parts from itself when a start is moved
    by one ulp. Where rounding flips a ReLU, Adam makes a full step of what was no gradient before,
    and that run leaves all others: so the worst of the twins makes the budget, and the best of
    the starts is held against it.
    """

    starts: list[Arrays]
    truths: list[Figures]
    halves: Mapping[str, list[Course]]
    ends: Mapping[str, list[Figures]]
    twins: list[Figures]

    def measures(self, case: Case, ends: Mapping[str, list[Figures]]) -> Iterator[Measure]:
        """How far from the referee each panel's `ends` are, those of the first starts or of all."""
        for name, truth in self.truths[0].items():
            chaos = max(distance(twin[name], end[name])
                        for twin, end in zip(self.twins, self.ends["torch"], strict=True))
            errors = {panel: min(distance(end[name], truth[name])
                                 for end, truth in zip(found, self.truths, strict=False))
                      for panel, found in ends.items()}
            yield Measure(case, name, norm(truth), FACTOR * (ROUNDOFF * norm(truth) + chaos),
                          errors)


@functools.lru_cache(maxsize=len(RATES))
def chaos(subject: Subject, kind: Kind) -> Chaos:
    run = functools.partial(train, subject.spec, kind=kind, seed=subject.seed)
    whole = functools.partial(run, steps=range(STEPS))
    starts = [{name: value.astype(np.float32) for name, value in aside.items()}
              for aside in itertools.islice(nudged(subject.weights, subject.seed), STARTS)]
    halves = {name: [run(panel, "float32", start=start, steps=FIRST) for start in starts]
              for name, panel in subject.panels.items()}
    return Chaos(
        starts, halves=halves,
        truths=[whole(subject.referee, "float64", start=start).figures() for start in starts],
        ends={name: [run(panel, "float32", start=half, steps=SECOND).figures()
                     for half in halves[name]] for name, panel in subject.panels.items()},
        twins=[whole(subject.panels["torch"], "float32",
                     start=one_ulp_aside(start, subject.seed)).figures() for start in starts])


def trajectory(subject: Subject) -> Iterator[Measure]:
    """Training: the loss at each step, the last weights, and how far MLX parts from PyTorch
    ("parting"; beside it how far PyTorch parts from itself)."""
    for kind in RATES:
        case, course = course_case(subject, kind), chaos(subject, kind)
        yield from course.measures(case, course.ends)
        home = course.ends["torch"]
        across, own = ([apart(*pair) for pair in zip(other, home, strict=True)]
                       for other in (course.ends["mlx"], course.twins))
        size = math.hypot(*map(norm, course.truths[0].values()))
        yield Measure(case, "parting", size, FACTOR * max(own),
                      {"mlx": min(across), "torch": min(own)})


def resume(subject: Subject) -> Iterator[Measure]:
    """Half of the trajectory on one panel, a checkpoint, the other half on either.

    The checkpoint arrives bit for bit. On a CPU the panel that wrote it ends where it would have
    ended unbroken, bit for bit; the other one, and a GPU, whose sums have no fixed order, within
    the trajectory's budget.
    """
    for kind, (writer, reader) in itertools.product(
            RATES, itertools.product(subject.panels, repeat=2)):
        case, course = course_case(subject, f"{kind} {writer} → {reader}"), chaos(subject, kind)
        run = functools.partial(train, subject.spec, subject.panels[reader], "float32", kind,
                                seed=subject.seed)
        loaded = through_a_file(course.halves[writer][0], writer)
        arrived = run(start=loaded, steps=range(0))
        for name, value in everything(course.halves[writer][0]).items():
            same = same_bits(everything(arrived).get(name), value)
            yield Measure(case, f"{name} as loaded", norm(value), 0.0,
                          {reader: 0.0 if same else np.inf})
        if writer == reader and subject.panels[reader].device == "cpu":
            unbroken = run(start=course.starts[0], steps=range(STEPS)).figures()
            resumed = run(start=loaded, steps=SECOND).figures()
            for name, value in unbroken.items():
                yield Measure(case, name, norm(value), 0.0,
                              {reader: distance(resumed[name], value)})
        else:
            ends, found = [], []
            for half in course.halves[writer]:
                ends.append(run(start=through_a_file(half, writer), steps=SECOND).figures())
                found = list(course.measures(case, {reader: ends}))
                if all(measure.worst <= 1 for measure in found):
                    break
            yield from found


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
