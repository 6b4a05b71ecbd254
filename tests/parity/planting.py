"""A mistake to plant in one panel, and the test that it is caught and located."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from parity import subject as comparing
from parity.budget import Floor, Verdict, judge
from parity.ladder import RUNGS, result
from specs.backend import Arrays, Backend
from tests.parity.conftest import small_subject

VERDICTS: dict[Any, Verdict] = {}


def remembered(evaluate: Callable[[Arrays], Any], start: Arrays, seed: int,
               floor: Floor) -> Verdict:
    """`judge`, once for all mistakes in MLX that ask the same: the referee is PyTorch."""
    asked = inspect.getclosurevars(evaluate).nonlocals
    names = {name: value for name, value in inspect.getclosurevars(asked["read"]).nonlocals.items()
             if isinstance(value, str)}
    key = (asked["subject"].spec, asked["case"].name, asked["read"].__qualname__, *names.values(),
           *((name, value.tobytes()) for name, value in start.items()))
    if key not in VERDICTS:
        VERDICTS[key] = judge(evaluate, start, seed, floor)
    return VERDICTS[key]


@dataclass(frozen=True)
class Fault:
    """`code` ("Class.method", or "function") of `module` reads `new` for `old`.

    `good` rungs hold, `rung` fails on `panel`, and the divergence is at `place` ("": nowhere in
    the model).
    """

    name: str
    module: str
    code: str
    old: str
    new: str
    rung: str
    place: str = ""
    good: tuple[str, ...] = ()
    panel: str = "mlx"
    spec: dict[str, Any] = field(default_factory=dict)

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        owner_name, _, name = self.code.rpartition(".")
        module = importlib.import_module(self.module)
        owner = getattr(module, owner_name) if owner_name else module
        function = getattr(owner, name)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, f"{self.old!r} is not one place of {self.code}"
        source = source.replace(self.old, self.new)
        made: dict[str, Any] = {}
        if owner_name:  # `super()` looks for a variable of this name around it
            source = f"def {name}(__class__):\n{textwrap.indent(source, '    ')}\n    return {name}"
        exec(source, function.__globals__, made)
        wrong = made[name](owner) if owner_name else made[name]
        # The code, not the name: others have imported the function, or will while it is wrong.
        patch.setattr(function, "__code__", wrong.__code__)

    def is_caught_and_located(self, arch: str, panels: dict[str, Backend],
                              patch: pytest.MonkeyPatch) -> None:
        """Assert it, on a small model."""
        self.plant(patch)
        if self.module.startswith("mlx"):
            patch.setattr(comparing, "judge", remembered)
        subject = small_subject(panels, arch, **self.spec)
        for name in self.good:
            assert result(subject, name, RUNGS[name](subject)).ok, name
        found = result(subject, self.rung, RUNGS[self.rung](subject))
        assert {panel for measure in found.failed for panel in measure.guilty} == {self.panel}
        assert {(each.panel, each.module) for each in found.divergences} == (
            {(self.panel, self.place)} if self.place else set())
        assert all(each.before <= 1 < each.after for each in found.divergences)
