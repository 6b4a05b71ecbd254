"""The Toeplitz mixer: does dividing by the kernel's sum help, do projections, and what do they
cost?

The original trained its four variants with raw kernels for 20,000 steps of 16 windows of 512
tokens, AdamW at 5e-4 with 500 steps of warm-up. Kernels through softplus, a later change, have no
sums that cross zero.
"""

from __future__ import annotations

from typing import Any

from train.study.figures import Row, best_rows, listed, probed, ranking, rows
from train.study.plan import Experiment, Kind, Plan
from train.study.setup import Setup

ORIGINAL = ["nomean_proj", "mean_proj", "nomean_noproj", "mean_noproj"]  # by evaluation loss
VARIANTS = {f"{'' if mean else 'no'}mean_{'' if proj else 'no'}proj":
            {"do_toep_mean": mean, "do_toep_proj": proj}
            for mean in (True, False) for proj in (True, False)}
KERNELS = ("softplus", "raw")


def setups(full: bool, vocab_size: int) -> dict[str, Setup]:
    """All variants of one width: without projections they have fewer parameters."""
    settings: dict[str, Any] = {"batch_size": 16, "warmup": 500} if full else {"batch_size": 8}
    preset, block = ("original", 512) if full else ("demo", 128)
    return {f"{name}-{kernel}": Setup(
        "toeplitz", {"block_size": block, "kernel": kernel, **fields}, settings, preset,
        (5e-4 if full else 2e-3,)) for kernel in KERNELS for name, fields in VARIANTS.items()}


def answer(plan: Plan) -> str:
    every, kind, said = rows(plan), plan.kinds[0], []
    for kernel in KERNELS:
        mine = [row for row in every if row.setup.endswith(f"-{kernel}")]
        order = [row.setup.partition("-")[0] for row in best_rows(mine, kind)]
        if len(order) == len(VARIANTS):
            same = "the original's order" if order == ORIGINAL else (
                f"not the original's order, {' < '.join(ORIGINAL)}")
            said.append(f"Kernels that are {kernel}: {ranking(mine, kind)} nats; {same}.")
    found = {row.setup: row for row in every}
    said.append("Dividing by the sum: " + effects(found, kind, "mean", "nomean") + ".")
    said.append("Projections: " + effects(found, kind, "_proj", "_noproj") + ".")
    costs = [f"{name} {row.rate.middle:,.0f}" for name, row in found.items() if row.rate]
    said.append(f"Training, tokens/s: {listed(costs)}.")
    for length in map(str, plan.experiment.contexts):
        rates = [f"{name} {rate:,.0f}" for name in found
                 if (rate := probed(plan, name).get("decoding", {}).get(length))]
        said.append(f"Decoding behind {length}, tokens/s: {listed(rates)}.")
    return " ".join(said)


def effects(found: dict[str, Row], kind: Kind, with_it: str, without: str) -> str:
    """What it does to the loss in each pair of setups that differ by nothing else."""
    words = []
    for name, row in found.items():
        other = found.get(name.replace(without, with_it)) if without in name else None
        if other and kind in row.loss and kind in other.loss:
            one, two = other.loss[kind], row.loss[kind]
            sure = "" if one.below(two) or two.below(one) else " (less than the spread)"
            words.append(f"{name.replace(without, with_it)} {one.middle - two.middle:+.3f}{sure}")
    return listed(words)


EXPERIMENT = Experiment(
    question="Toeplitz mixers: does the mean help, do the projections, and what do they cost?",
    setups=setups, answer=answer, steps=(200, 20_000), minutes=45, contexts=(64,))
