"""AdamW against Muon for every architecture, each at its own best learning rate."""

from __future__ import annotations

from dataclasses import replace

from specs import architectures as every_architecture
from train.experiments import architectures
from train.study.claims import time_ratio
from train.study.figures import Row, listed, rows
from train.study.plan import Experiment, Kind, Plan
from train.study.setup import Setup
from train.study.timing import Measure, steps

RATES = {"adamw": (1e-3, 3e-3, 1e-2), "muon": (5e-3, 1.5e-2, 4.5e-2)}


def setups(full: bool, vocab_size: int) -> dict[str, Setup]:
    """The models of the experiment `architectures`; equal time is that of the pair."""
    return {f"{name}-{optimizer}": replace(
        setup, settings={**setup.settings, "optimizer": optimizer}, rates=rates, group=name)
        for name, setup in architectures.setups(full, vocab_size).items()
        for optimizer, rates in RATES.items()}


def pairs(plan: Plan) -> list[tuple[str, Row, Row]]:
    """(architecture, its AdamW row, its Muon row) of all that have both."""
    found = {row.setup: row for row in rows(plan)}
    groups = dict.fromkeys(setup.group for setup in plan.setups.values())
    return [(name, found[f"{name}-adamw"], found[f"{name}-muon"]) for name in groups
            if f"{name}-adamw" in found and f"{name}-muon" in found]


def verdicts(plan: Plan, kind: Kind) -> str:
    """Where Muon's loss is lower in every seed, where AdamW's, where neither's."""
    groups: dict[str, list[str]] = {"Muon": [], "AdamW": [], "neither": []}
    for name, adamw, muon in pairs(plan):
        if kind in adamw.loss and kind in muon.loss:
            one, other = adamw.loss[kind], muon.loss[kind]
            winner = "Muon" if other.below(one) else "AdamW" if one.below(other) else "neither"
            groups[winner].append(f"{name} ({other.middle - one.middle:+.3f} nats)")
    return "; ".join(f"{winner} for {listed(names)}" for winner, names in groups.items() if names)


def answer(plan: Plan) -> str:
    said = []
    for kind, when in (("tokens", "With equal steps"), ("time", "In equal time"),
                       ("clock", f"In {plan.minutes or 0:g} minutes")):
        if kind in plan.kinds and (found := verdicts(plan, kind)):  # type: ignore[arg-type]
            said.append(f"{when}, who is lower in every seed: {found}.")
    if ratios := [f"{name} {ratio.middle:.2f}" for name, _, _ in pairs(plan)
                  if (ratio := time_ratio(plan, f"{name}-muon", f"{name}-adamw"))]:
        said.append(f"A step of Muon takes of the time of one of AdamW: {listed(ratios)}.")
    if rates := [f"{name} {adamw.lr:g} and {muon.lr:g}" for name, adamw, muon in pairs(plan)]:
        said.append(f"Learning rates of AdamW and Muon: {listed(rates)}.")
    return " ".join(said)


EXPERIMENT = Experiment(
    question="AdamW or Muon, at equal steps and in equal time?",
    setups=setups, answer=answer, steps=(200, 10_000), minutes=90,
    measures={name: Measure(steps, (f"{name}-muon", f"{name}-adamw"))
              for name in every_architecture()})
