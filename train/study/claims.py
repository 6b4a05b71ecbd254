"""What somebody claims of each item of a list, beside what was measured of it.

An item is a setup that differs from another in that one thing, its base, or a figure that a measure
found, or both. Ratios are the item's over the base's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from train.study.figures import Figure, figure, probed
from train.study.plan import Kind, Plan

HEADINGS = {"time": "time a token, ×", "memory": "memory, ×", "loss_tokens": "loss, equal tokens",
            "loss_time": "loss, equal time", "loss_clock": "loss, by the clock"}


@dataclass(frozen=True)
class Claim:
    """`says`: what is claimed of the `item`; `setup`: has it, and `base` has not; `also(plan)`:
    what else was found, in words."""

    item: str
    says: str
    setup: str = ""
    base: str = ""
    also: Callable[[Plan], str] = lambda plan: ""


@dataclass(frozen=True)
class Finding:
    """Ratios of a token's time and of a step's memory, differences of held-out loss in nats."""

    time: Figure | None = None
    memory: Figure | None = None
    loss_tokens: Figure | None = None
    loss_time: Figure | None = None
    loss_clock: Figure | None = None


def finding(plan: Plan, claim: Claim) -> Finding:
    """What is known of the claim's setup beside its base."""
    here = [plan.setups[name].arguments() for name in (claim.setup, claim.base)
            if name in plan.setups]
    time = memory = None
    if len(here) == 2 and here[0] != here[1]:  # and not one training, of another length
        time = time_ratio(plan, claim.setup, claim.base)
        mine, base = (probed(plan, name).get("memory") for name in (claim.setup, claim.base))
        memory = figure([mine / base] if mine and base else [], mean)
    return Finding(time, memory,
                   **{f"loss_{kind}": difference(plan, kind, claim.setup, claim.base)
                      for kind in plan.kinds})


def time_ratio(plan: Plan, setup: str, base: str) -> Figure | None:
    """Of a token in training: side by side where a measure has it, else from trainings one after
    the other."""
    if faster := plan.beside(setup, base):
        return Figure(1 / faster["middle"], 1 / faster["high"], 1 / faster["low"])
    mine, others = (plan.ended(name, ("tokens", "clock")) if name in plan.setups else []
                    for name in (setup, base))
    return figure([other["rate"] / one["rate"]
                   for one, other in zip(mine, others, strict=False)], mean)


def difference(plan: Plan, kind: Kind, setup: str, base: str) -> Figure | None:
    """Of the losses of trainings of this kind, seed by seed."""
    pairs = []
    for seed in range(plan.seeds):
        every = [[loss for lr in plan.shown(name)
                  if (loss := plan.found.get(plan.arm(name, kind, lr, seed).name, {}).get("loss"))]
                 for name in (setup, base) if name in plan.setups]
        if len(every) == 2 and all(every):
            pairs.append(min(every[0]) - min(every[1]))
    return figure(pairs, mean)


def reached(plan: Plan, setup: str, base: str) -> float | None:
    """The share of its steps after which a setup has the loss that its base ends at, at equal
    tokens, read off straight lines between evaluations: the mean over seeds, None where it never
    comes there."""
    shares = []
    for seed in range(plan.seeds):
        mine, other = (plan.found.get(plan.arm(name, "tokens", lr, seed).name, {})
                       for name in (setup, base) for lr in plan.shown(name)[:1])
        curve, goal = mine.get("curve", []), other.get("loss")
        below = next((i for i, (_, loss) in enumerate(curve) if goal and loss <= goal), None)
        if below is None:
            return None
        step, loss = curve[below]
        if below:
            before, higher = curve[below - 1]
            step = before + (step - before) * (higher - goal) / max(higher - loss, 1e-9)
        shares.append(step / curve[-1][0])
    return mean(shares)


def table(plan: Plan) -> list[list[str]]:
    """Headings, then a row for each claim of which something is known; columns that say nothing
    left out."""
    rows = [(claim, finding(plan, claim), claim.also(plan)) for claim in plan.experiment.claims]
    rows = [row for row in rows if any(asdict(row[1]).values()) or row[2]]
    columns = [["item", *(claim.item for claim, _, _ in rows)],
               ["claimed", *(claim.says for claim, _, _ in rows)]]
    for name, heading in HEADINGS.items():
        form = ".2f" if name in ("time", "memory") else "+.3f"
        columns.append([heading, *(between(getattr(found, name), form) for _, found, _ in rows)])
    columns.append(["besides", *(also for _, _, also in rows)])
    said = [column for column in columns if any(column[1:])]
    return [list(cells) for cells in zip(*said, strict=True)]


def between(found: Figure | None, form: str) -> str:
    """A figure as the table shows it."""
    if found is None:
        return ""
    low, middle, high = (f"{value:{form}}" for value in (found.low, found.middle, found.high))
    return middle if low == high else f"{middle} ({low} … {high})"


def machine_rows(plan: Plan) -> list[dict[str, Any]]:
    """The same for programs."""
    return [{"item": claim.item, "claimed": claim.says, "setup": claim.setup, "base": claim.base,
             **asdict(finding(plan, claim)), "besides": claim.also(plan)}
            for claim in plan.experiment.claims]
