"""From trainings to figures with their spread, and what may be said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

from train.study.plan import Kind, Plan


@dataclass(frozen=True)
class Figure:
    """A median or mean, and the lowest and highest it was made of."""

    middle: float
    low: float
    high: float

    def below(self, other: Figure) -> bool:
        """Whether all that this was made of is lower than all of the other."""
        return self.high < other.low


@dataclass(frozen=True)
class Row:
    """What a setup showed at one learning rate: by kind of training its held-out loss in nats, at
    the end and at its lowest, its training loss, its accuracy, its updates and seconds; and its
    held-out loss by the length of the windows read."""

    setup: str
    lr: float
    loss: dict[Kind, Figure] = field(default_factory=dict)
    lowest: dict[Kind, Figure] = field(default_factory=dict)
    training: dict[Kind, Figure] = field(default_factory=dict)
    accuracy: dict[Kind, Figure] = field(default_factory=dict)
    updates: dict[Kind, Figure] = field(default_factory=dict)
    seconds: dict[Kind, Figure] = field(default_factory=dict)
    read: dict[Kind, dict[int, Figure]] = field(default_factory=dict)
    rate: Figure | None = None
    failed: tuple[str, ...] = ()


def figure(values: Iterable[float], middle: Callable[[list[float]], float]) -> Figure | None:
    values = list(values)
    return Figure(middle(values), min(values), max(values)) if values else None


def rows(plan: Plan) -> list[Row]:
    """One for each setup and learning rate that are compared."""
    return [row(plan, name, lr) for name in plan.setups for lr in plan.shown(name)]


def row(plan: Plan, name: str, lr: float) -> Row:
    found = Row(name, lr)
    failed, rates = [], []
    for kind in plan.kinds:
        every = [plan.found[arm.name] for seed in range(plan.seeds)
                 if (arm := plan.arm(name, kind, lr, seed)).name in plan.found]
        failed += [figures["error"] for figures in every if "error" in figures]
        ended = [{**figures} for figures in every if "error" not in figures]
        rates += [figures["rate"] for figures in ended]
        for figures in ended:
            figures |= {"lowest": min(loss for _, loss in figures["curve"]),
                        "seconds": figures["tokens"] / figures["rate"]}
        for key in ("loss", "lowest", "training", "accuracy", "updates", "seconds"):
            if (made := figure([figures[key] for figures in ended], mean)) is not None:
                getattr(found, key)[kind] = made
        found.read[kind] = {
            int(length): made for length in dict.fromkeys(
                length for figures in ended for length in figures.get("read", {}))
            if (made := figure([figures["read"][length] for figures in ended], mean))}
    return replace(found, rate=figure(rates, median), failed=tuple(dict.fromkeys(failed)))


def best_rows(every: list[Row], kind: Kind) -> list[Row]:
    """For each setup the row of lowest loss, the best setup first."""
    best: dict[str, Row] = {}
    for each in every:
        if kind in each.loss and (each.setup not in best or each.loss[kind].middle
                                  < best[each.setup].loss[kind].middle):
            best[each.setup] = each
    return sorted(best.values(), key=lambda each: each.loss[kind].middle)


def ranking(every: list[Row], kind: Kind) -> str:
    """The setups by loss: `<` where each seed of the one is below each of the next, else `≈`."""
    best = best_rows(every, kind)
    words = [f"{each.setup} {each.loss[kind].middle:.3f}" for each in best]
    signs = [" < " if one.loss[kind].below(other.loss[kind]) else " ≈ "
             for one, other in zip(best, best[1:], strict=False)]
    return "".join(part for pair in zip(words, [*signs, ""], strict=True) for part in pair)


def probed(plan: Plan, name: str) -> dict[str, Any]:
    """Memory in bytes and decoding in tokens/s by context, where they were measured."""
    return plan.found.get(f"{name}-probe", {})


def spread(found: Figure | None, form: str = ".3f") -> str:
    """A figure as a table shows it."""
    if found is None:
        return ""
    alone = f"{found.middle:{form}}"
    return alone if found.low == found.high else f"{alone} ({found.low:{form}}–{found.high:{form}})"


def listed(words: list[str]) -> str:
    return ", ".join(words) or "none"
