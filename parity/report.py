"""The table that grows while the rungs are climbed, and the same as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from parity.budget import FACTOR, NUDGES
from parity.ladder import Result
from parity.subject import Measure, Subject
from specs.backend import Backend

CELLS = "{:<12} {:<40} {:>9} {:>9} {:>9}  "
HEAD = CELLS.format("rung", "worst at", "mlx", "torch", "mlx/torch") + "verdict       s"
SHOWN = 5  # figures shown of a rung that failed


class Report:
    """Prints one line a rung, as it is climbed."""

    def __init__(self, console: Console):
        self.console = console

    def panels(self, panels: Mapping[str, Backend]) -> None:
        for name, panel in panels.items():
            facts = ", ".join(f"{key} {value}" for key, value in panel.versions().items())
            self.line(f"{name}: {facts}")
        self.line("referee: torch in float64; errors are over budget, above 1 is a mismatch")

    def head(self, title: str, subject: Subject) -> None:
        spec = subject.spec
        self.line(f"\n{title}: {spec.param_count():,} parameters, "
                  + ", ".join(f"{name}={value}" for name, value in spec.to_dict().items()))
        self.console.print(f"[bold]{HEAD}[/bold]", soft_wrap=True)

    def line(self, text: str) -> None:
        self.console.print(escape(text), soft_wrap=True)

    def row(self, result: Result) -> Result:
        worst = result.worst()
        cells = CELLS.format(result.rung, shortened(f"{worst.case.name} {worst.name}", 40),
                             *map(number, overs(result)))
        colour, verdict = ("green", "ok") if result.ok else ("red", "MISMATCH")
        self.console.print(f"{escape(cells)}[{colour}]{verdict:<8}[/{colour}] "
                           f"{result.seconds:6.1f}", soft_wrap=True)
        if not result.ok:
            self.failure(result)
        for case, n in result.hesitant.items():
            self.line(f"  {case}: a choice within roundoff: the referee, nudged, chooses {n} "
                      "experts otherwise, and the budget holds that jump")
        return result

    def failure(self, result: Result) -> None:
        failed = sorted(result.failed, key=lambda measure: -measure.worst)
        for measure in failed[:SHOWN]:
            self.line(f"  {measure.case.name} {measure.name}: " + ", ".join(
                f"{panel} {number(measure.over(panel))}" for panel in measure.errors)
                + " times the budget" + relative(measure))
        if len(failed) > SHOWN:
            self.line(f"  … and {len(failed) - SHOWN} more figures of {len(result.measures)}")
        first = result.failed[0]
        self.line(f"  first over budget: {first.case.name} {first.name}")
        for divergence in result.divergences:
            self.line(f"  → {divergence}")
        if not result.divergences:
            self.line("  → no module parts from the referee there, forward or backward: the "
                      "difference lies around the model")

    def end(self, ok: bool) -> None:
        self.line("\nBoth panels are the same model." if ok else
                  "\nThere is a mismatch. The referee shares its code with the PyTorch panel; only "
                  "an oracle (--oracle) is independent of both.")


def overs(result: Result) -> tuple[float, float, float]:
    """The worst error over budget on MLX and on PyTorch, and the first over the second."""
    mlx, torch = (max((m.over(panel) for m in result.on(panel)), default=math.nan)
                  for panel in ("mlx", "torch"))
    return mlx, torch, mlx / torch if torch > 0 else math.nan


def number(x: float) -> str:
    """A short figure; "-" where there is none."""
    if math.isnan(x):
        return "-"
    return f"{x:.3f}" if x < 100 else f"{x:.2g}"


def relative(measure: Measure) -> str:
    worst = max(measure.errors.values())
    return f" (relative error {worst / measure.size:.1e})" if measure.size else ""


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[:width - 1] + "…"


def as_json(title: str, subject: Subject, results: list[Result]) -> dict[str, Any]:
    """Everything that was measured of one model. An infinite error becomes null."""
    return {
        "title": title, "arch": subject.spec.arch, "spec": subject.spec.to_dict(),
        "seed": subject.seed, "factor": FACTOR, "nudges": NUDGES,
        "rungs": [{
            "rung": result.rung, "ok": result.ok, "seconds": round(result.seconds, 3),
            "hesitant": dict(result.hesitant),
            "divergences": [vars(divergence) | {"before": finite(divergence.before),
                                                "after": finite(divergence.after)}
                            for divergence in result.divergences],
            "measures": [{
                "case": measure.case.name, "name": measure.name, "size": finite(measure.size),
                "budget": finite(measure.budget),
                "errors": {panel: finite(error) for panel, error in measure.errors.items()},
            } for measure in result.measures],
        } for result in results],
    }


def finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
