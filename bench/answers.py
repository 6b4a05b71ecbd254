"""From trainings to figures, and from figures to answers in words.

A trial's key is (backend, kind, setup, number): kind "speed" of a round, "steps" or "time" of a
seed: the same number of updates as the baseline's, or as many as the baseline's time allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, prod
from statistics import mean, median
from typing import Any

from bench.claims import Option, Plan
from train.study.figures import Figure, figure, listed

Trials = Mapping[str, Mapping[str, Any]]
ALIKE = 1.1  # ratios that differ by less are called the same


@dataclass(frozen=True)
class Shown:
    """What a setup showed against its base: ratios of tokens/s and of peak memory, differences of
    held-out loss in nats at equal steps and at equal time; or why it could not run."""

    rate: Figure | None = None
    memory: Figure | None = None
    steps: Figure | None = None
    time: Figure | None = None
    error: str | None = None


def key(backend: str, kind: str, name: str, number: int) -> str:
    return f"{backend}, {kind}, {name}, {number}"


def numbered(trials: Trials, backend: str, kind: str, name: str) -> dict[int, Mapping[str, Any]]:
    """The trials of a setup that ended well, by round or seed."""
    start = key(backend, kind, name, 0)[:-1]
    return {int(found[len(start):]): trial for found, trial in trials.items()
            if found.startswith(start) and "error" not in trial}


def show(trials: Trials, plan: Plan, backend: str, name: str) -> Shown:
    """What the setup `name` showed."""
    errors = [trial["error"] for found, trial in trials.items()
              if found.startswith(f"{backend}, speed, {name}, ") and "error" in trial]
    base = plan.base_of(name)
    mine, others = (numbered(trials, backend, "speed", each) for each in (name, base))
    both = mine.keys() & others.keys()
    rate = [mine[i]["rate"] / others[i]["rate"] for i in both]
    memory = [mine[i]["memory"] / others[i]["memory"] for i in both]
    steps, base_steps = (numbered(trials, backend, "steps", each) if name in plan.learnt else {}
                         for each in (name, base))
    # Where the time allows as many updates, that training is the same one.
    timed = {**steps, **numbered(trials, backend, "time", name)} if steps else {}
    return Shown(figure(rate, median), figure(memory, median), differences(steps, base_steps),
                 differences(timed, base_steps), errors[0] if errors and not mine else None)


def differences(mine: Mapping[int, Mapping[str, Any]],
                others: Mapping[int, Mapping[str, Any]]) -> Figure | None:
    """Of the losses, seed by seed."""
    return figure([mine[i]["loss"] - others[i]["loss"] for i in mine.keys() & others.keys()], mean)


def verdict(option: Option, found: Shown) -> str:
    """Whether the claim's numbers hold: at least as fast, at most as much memory."""
    held = []
    if option.rate and found.rate:
        held.append(found.rate.middle >= option.rate[0])
    if option.memory and found.memory:
        held.append(found.memory.middle <= option.memory[1] * 1.02)
    if not held:
        return ""
    return "holds" if all(held) else "in part" if any(held) else "no"


def stack(shown: Mapping[str, Shown], plan: Plan, kind: str) -> list[tuple[Option, float, float]]:
    """(what is added, the ratio `kind` of all so far, the product of the single ratios)."""
    rows, singles = [], []
    for name, option in zip(plan.levels, plan.stacked, strict=True):
        together, alone = (getattr(shown[each], kind) for each in (name, option.key))
        if together is None or alone is None:
            break
        singles.append(alone.middle)
        rows.append((option, together.middle, prod(singles)))
    return rows


def answers(trials: Trials, plan: Plan, backend: str, parameters: int) -> list[str]:
    """The paragraphs for one backend."""
    shown = {name: show(trials, plan, backend, name) for name in plan.setups()}
    return [text for text in (which_stack(shown, plan), small_models(shown, plan, parameters),
                              best_length(trials, plan, backend)) if text]


def which_stack(shown: Mapping[str, Shown], plan: Plan) -> str:
    """Do ratios multiply, do differences of loss add up?"""
    text = "**Which of them stack?**"
    for kind, what in (("rate", "speed"), ("memory", "peak memory")):
        rows = stack(shown, plan, kind)
        if len(rows) < 2:
            continue
        _, together, product = rows[-1]
        text += (f" All {len(rows)} together reach {together:.2f} times the {what} of the baseline;"
                 f" their single ratios multiply to {product:.2f}.")
        before, same, apart = 1.0, [], []
        for option, level, _ in rows:
            effect, alone = level / before, getattr(shown[option.key], kind).middle
            before = level
            if abs(log(effect / alone)) < log(ALIKE):
                same.append(option.title)
            else:
                apart.append(f"{option.title} ({alone:.2f} alone, {effect:.2f} on top)")
        text += f" The same {what} ratio alone and on top of those before: {listed(same)}."
        if apart:
            text += f" Another: {listed(apart)}."
    if "modern" in shown and shown["modern"].steps:
        alone = [shown[option.key].steps for option in plan.modern]
        total = sum(each.middle for each in alone if each)
        text += (f" In loss at equal steps, {listed([option.title for option in plan.modern])} add "
                 f"up to {total:+.3f} nats alone and give {shown['modern'].steps.middle:+.3f} "
                 "together.")
    return text


def small_models(shown: Mapping[str, Shown], plan: Plan, parameters: int) -> str:
    """What lowered the loss in every seed, what raised it, what did neither."""
    text = f"**Do they help small models?** Here, with {parameters:,} parameters."
    for kind, when in (("steps", "at equal steps"), ("time", "at equal time")):
        groups: dict[str, list[str]] = {"lower": [], "higher": [], "undecided": []}
        for option in plan.options:
            found = getattr(shown[option.key], kind)
            if found is not None:
                group = "lower" if found.high < 0 else "higher" if found.low > 0 else "undecided"
                groups[group].append(f"{option.title} ({found.middle:+.3f})")
        said = [f"{group}: {listed(names)}" for group, names in groups.items() if names]
        text += f" Held-out loss {when} is " + "; ".join(said) + "." if said else ""
    rates = {option.title: shown[option.key].rate for option in plan.options}
    faster = [f"{title} ({found.middle:.2f})" for title, found in rates.items()
              if found and found.low > 1]
    return text + f" Faster in every round: {listed(faster)}."


def length_losses(trials: Trials, plan: Plan, backend: str) -> dict[int, dict[int, Figure]]:
    """{length in training: {length of the held-out windows: loss}}, all in the same time."""
    found = {}
    for length in plan.lengths:
        each = numbered(trials, backend, "time", f"length {length}").values()
        losses = {other: figure([trial[f"loss {other}"] for trial in each], mean)
                  for other in plan.lengths}
        found[length] = {other: loss for other, loss in losses.items() if loss}
    return {length: losses for length, losses in found.items() if losses}


def best_length(trials: Trials, plan: Plan, backend: str) -> str:
    table = length_losses(trials, plan, backend)
    if not table:
        return ""
    said = []
    for other in plan.lengths:
        best = min(table, key=lambda length: table[length][other].middle)
        said.append(f"{best} for windows of {other} ({table[best][other].middle:.3f} nats)")
    return ("**What is the best length for a given time?** With equal tokens an update, in the "
            "time of the baseline's updates, the lowest held-out loss comes from training on "
            f"{listed(said)}.")
