"""What is checked, and the one way in which every rung compares: both panels with the referee."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from parity.budget import Figures, Floor, distance, judge, norm, over, own_rounding
from parity.cases import Case
from specs import UserError
from specs.backend import (
    BACKENDS,
    Arrays,
    Backend,
    Batch,
    Dtype,
    Model,
    available_backends,
    load_backend,
)
from specs.base import Spec

SMALL = 10**6  # parameters below which threads would only wait for each other


@dataclass(frozen=True, eq=False)
class Subject:
    """A model (weights in float32), the panels to compare by name, and the referee's backend.

    The referee is PyTorch in float64 on the CPU; MLX computes exp and friends in float32.
    """

    spec: Spec
    weights: Arrays
    panels: Mapping[str, Backend]
    referee: Backend
    seed: int = 0


def is_small(spec: Spec) -> bool:
    return spec.param_count() < SMALL


def load_panels(small: bool) -> dict[str, Backend]:
    """Both panels, PyTorch on the CPU, where it is also the referee.

    Raises `UserError` where one is not installed.
    """
    missing = [name for name in BACKENDS if name not in available_backends()]
    if missing:
        raise UserError(f"parity compares MLX with PyTorch, and {' and '.join(missing)} cannot be "
                        "found here: pip install -e '.[all]'")
    if small:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch = load_backend("torch", "cpu")  # before MLX, so that each has the BLAS it came with
    return {"mlx": load_backend("mlx"), "torch": torch}


@dataclass(frozen=True)
class Trial:
    """One evaluation: a backend, the model that it built from `start`, and what to feed it."""

    backend: Backend
    dtype: Dtype
    model: Model
    batch: Batch
    start: Arrays

    @property
    def is_referee(self) -> bool:
        return self.dtype == "float64"


@dataclass(frozen=True)
class Measure:
    """One figure: how far each panel is from the referee, and how far a right one may be."""

    case: Case
    name: str
    size: float
    budget: float
    errors: Mapping[str, float]

    def over(self, panel: str) -> float:
        return over(self.errors[panel], self.budget)

    @property
    def guilty(self) -> list[str]:
        """The panels that are over the budget."""
        return [panel for panel in self.errors if self.over(panel) > 1]

    @property
    def worst(self) -> float:
        return max(map(self.over, self.errors))


def attempt(spec: Spec, backend: Backend, dtype: Dtype, batch: Batch, start: Arrays) -> Trial:
    """Build the model whose weights are in `start`, which may hold other arrays besides."""
    weights = {param.name: start[param.name] for param in spec.params()}
    return Trial(backend, dtype, backend.build(spec, weights, dtype), batch, start)


def compare(subject: Subject, case: Case, read: Callable[[Trial], Figures],
            start: Arrays | None = None, floor: Floor = own_rounding) -> Iterator[Measure]:
    """Measure every figure of `read`; `start` (default: the weights) is all that gets nudged."""
    start = subject.weights if start is None else start

    def referee(aside: Arrays) -> Figures:
        return read(attempt(subject.spec, subject.referee, "float64", case.batch, aside))

    verdict = judge(referee, start, subject.seed, floor)
    found = {name: read(attempt(subject.spec, panel, "float32", case.batch, start))
             for name, panel in subject.panels.items()}
    for name, truth in verdict.truth.items():
        errors = {panel: distance(figures.get(name), truth) for panel, figures in found.items()}
        yield Measure(case, name, norm(truth), verdict.budget[name], errors)
