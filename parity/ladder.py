"""The ladder: all rungs in order, from the weights to a resumed training run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from parity import decoding_rungs, rungs, step_rung, training_rungs
from parity.choices import hesitations
from parity.locate import Divergence, locate
from parity.locate_decoding import locate_decoding
from parity.subject import Measure, Subject

Rung = Callable[[Subject], Iterator[Measure]]

RUNGS: Mapping[str, Rung] = {
    "parameters": rungs.parameters,
    "activations": rungs.activations,
    "single-step": rungs.single_step,
    "logits": rungs.logits,
    "loss": rungs.loss,
    "gradients": rungs.gradients,
    "optimizer": step_rung.optimizer_step,
    "trajectory": training_rungs.trajectory,
    "resume": training_rungs.resume,
    "decoding": decoding_rungs.decoding,
    "sampling": decoding_rungs.sampling,
}


@dataclass(frozen=True)
class Result:
    """One rung climbed. `divergences` say where the panels part, if a rung failed for that;
    `hesitant` in which cases the referee hesitates between so many choices."""

    rung: str
    measures: tuple[Measure, ...]
    divergences: tuple[Divergence, ...]
    seconds: float
    hesitant: Mapping[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> list[Measure]:
        """What is over its budget, in the order measured."""
        return [measure for measure in self.measures if measure.worst > 1]

    @property
    def ok(self) -> bool:
        return not self.failed

    def worst(self, panel: str | None = None) -> Measure:
        """The figure with the largest error over budget, on one panel or on any."""
        if panel is None:
            return max(self.measures, key=lambda measure: measure.worst)
        return max(self.on(panel), key=lambda measure: measure.over(panel))

    def on(self, panel: str) -> list[Measure]:
        return [measure for measure in self.measures if panel in measure.errors]


def climb(subject: Subject, names: Iterable[str] = RUNGS) -> Iterator[Result]:
    """Climb the rungs named, all of them whether they hold or not, and locate what parts."""
    for name in names:
        yield result(subject, name, RUNGS[name](subject))


def result(subject: Subject, name: str, measuring: Iterable[Measure]) -> Result:
    began = time.perf_counter()
    measures = tuple(measuring)
    failed = next((measure for measure in measures if measure.worst > 1), None)
    located = [] if failed is None else (locate(subject, failed.case, failed.guilty)
                                         or locate_decoding(subject, failed.case, failed.guilty))
    cases = {measure.case.name: measure.case for measure in measures}
    hesitant = {case: n for case in cases if (n := hesitations(subject, cases[case]))}
    return Result(name, measures, tuple(located), time.perf_counter() - began, hesitant)
