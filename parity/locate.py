"""Where two implementations part: the first module, forward and backward, and how suddenly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from parity.budget import Figures, own_rounding
from parity.cases import Case
from parity.rungs import replays, whole_gradient
from parity.subject import Measure, Subject, Trial, compare

MODEL = "the model's own call"
Measures = Mapping[str, Measure]


@dataclass(frozen=True)
class Divergence:
    """`panel` leaves the referee at `module`: error over budget `before` and `after` it.

    In the backward pass errors travel from the loss to the tokens: "before" is at the output.
    """

    panel: str
    direction: Literal["forward", "backward", "decoding"]
    module: str
    before: float
    after: float

    def __str__(self) -> str:
        return (f"{self.panel} leaves the referee in the {self.direction} pass at {self.module}: "
                f"error over budget {self.before:.2f} before it, {self.after:,.1f} after it")


def locate(subject: Subject, case: Case, suspects: Iterable[str]) -> list[Divergence]:
    """The first divergence of each suspected panel: forward, or else backward, if there is one.

    Two ways of looking are joined. Fed by the referee, only the guilty module turns red; the
    errors before and after it are those of the whole pass. Where every module is right by itself,
    what joins them is wrong: their caller.
    """
    alone = {measure.name: measure for measure in replays(subject, case)}
    passing = {measure.name: measure
               for measure in compare(subject, case, whole_pass, floor=rounding)}
    paths = [name.removesuffix(" output") for name in passing if name.endswith(" output")]
    found = (forward(panel, paths, alone, passing) or backward(panel, paths, alone, passing)
             for panel in suspects)
    return [divergence for divergence in found if divergence]


def whole_pass(trial: Trial) -> Figures:
    """What goes in and out of every module, the gradient at its output, and the logits."""
    figures: dict[str, np.ndarray] = {}
    for call in trial.backend.trace(trial.model, trial.batch, grads=True):
        figures |= {f"{call.path} input {i}": x for i, x in enumerate(call.inputs)
                    if isinstance(x, np.ndarray)}
        assert call.grad is not None
        figures |= {f"{call.path} output": call.output, f"{call.path} grad": call.grad}
    return {**figures, "logits": trial.backend.logits(trial.model, trial.batch.tokens)}


def rounding(truth: Figures) -> dict[str, float]:
    gradients = {name: value for name, value in truth.items() if name.endswith(" grad")}
    return {**own_rounding(truth), **whole_gradient(gradients)}


def forward(panel: str, paths: list[str], alone: Measures | None,
            passing: Measures) -> Divergence | None:
    """In execution order, children before their parent. Where no module was tried alone, one is
    guilty that gives something wrong for something right."""
    left = 0.0
    for path in paths:
        entering = worst(panel, passing, f"{path} input ")
        leaving = passing[f"{path} output"].over(panel)
        if alone[path].over(panel) > 1 if alone else entering <= 1 < leaving:
            return Divergence(panel, "forward", path, entering, leaving)
        if entering > 1:
            guilty = caller(path, paths)
            while guilty != MODEL and worst(panel, passing, f"{guilty} input ") > 1:
                guilty = caller(guilty, paths)
            return Divergence(panel, "forward", guilty, left, entering)
        left = leaving
    after = passing["logits"].over(panel)
    return Divergence(panel, "forward", MODEL, left, after) if after > 1 else None


def backward(panel: str, paths: list[str], alone: Measures, passing: Measures) -> Divergence | None:
    """In reverse execution order; the innermost of the modules that are wrong by themselves."""
    arriving = {path: passing[f"{path} grad"].over(panel) for path in paths}
    red = [path for path in paths if worst(panel, alone, f"{path} backward ") > 1]
    for path in reversed(red):
        if not any(other.startswith(bare(path) + ".") for other in red):
            return Divergence(panel, "backward", path, arriving[path],
                              worst(panel, alone, f"{path} backward "))
    left = 0.0
    for path in reversed(paths):
        if arriving[path] > 1:
            return Divergence(panel, "backward", caller(path, paths), left, arriving[path])
        left = arriving[path]
    return None


def worst(panel: str, measures: Measures, prefix: str) -> float:
    return max((measure.over(panel) for name, measure in measures.items()
                if name.startswith(prefix)), default=0.0)


def bare(path: str) -> str:
    """The module's path without the number of the call."""
    return path.partition("#")[0]


def caller(path: str, paths: Iterable[str]) -> str:
    """The innermost module around `path`."""
    around = bare(path)
    while around := around.rpartition(".")[0]:
        if around in paths:
            return around
    return MODEL
