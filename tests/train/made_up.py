"""Figures of trainings that never were."""

from __future__ import annotations

import re
from typing import Any

from train import experiments
from train.study.plan import Arm, Plan

SLOW, MIDDLE, FAST = 100.0, 200.0, 400.0  # tokens/s


def done(made: Plan, arm: Arm, loss: float, rate: float = MIDDLE) -> None:
    made.found[arm.name] = {"setup": arm.setup, "kind": arm.kind, "loss": loss, "accuracy": 0.5,
                            "updates": arm.length, "rate": rate, "training": loss - 0.1,
                            "tokens": 100 * rate, "curve": [[1, loss + 1], [2, loss]]}


def made_up(name: str, losses: dict[str, float], **options: Any) -> Plan:
    """All trainings of an experiment done: `losses` by the beginning of the name of the setup; in
    equal time all is as it is at equal tokens, but at half the speed for the first setup."""
    experiment = experiments.load(name)
    made = Plan(experiment, experiment.setups(False, 256), experiment.steps[0], **options)
    for arm in made.arms():
        if arm.kind == "probe":
            made.found[arm.name] = {"setup": arm.setup, "kind": "probe", "memory": 1_000_000,
                                    "decoding": {"64": 100 + len(arm.setup)}}
        elif arm.kind != "measure":
            key = next(key for key in losses if arm.name.startswith(key))
            done(made, arm, losses[key] + 0.01 * arm.seed + arm.lr / 1000,
                 SLOW if arm.setup == next(iter(made.setups)) else MIDDLE)
    return made


def said(made: Plan) -> str:
    return re.sub(r"\s+", " ", made.experiment.answer(made).replace("**", ""))
