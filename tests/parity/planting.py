"""A mistake to plant in one panel, and the test that it is caught and located."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from dataclasses import dataclass, field
from typing import Any

import pytest

from parity.ladder import RUNGS, result
from specs.backend import Backend
from tests.parity.conftest import small_subject


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
        made: dict[str, Any] = {}
        exec(source.replace(self.old, self.new), function.__globals__, made)
        patch.setattr(owner, name, made[name])

    def is_caught_and_located(self, arch: str, panels: dict[str, Backend],
                              patch: pytest.MonkeyPatch) -> None:
        """Assert it, on a small model."""
        self.plant(patch)
        subject = small_subject(panels, arch, **self.spec)
        for name in self.good:
            assert result(subject, name, RUNGS[name](subject)).ok, name
        found = result(subject, self.rung, RUNGS[self.rung](subject))
        assert {panel for measure in found.failed for panel in measure.guilty} == {self.panel}
        assert {(each.panel, each.module) for each in found.divergences} == (
            {(self.panel, self.place)} if self.place else set())
        assert all(each.before <= 1 < each.after for each in found.divergences)
