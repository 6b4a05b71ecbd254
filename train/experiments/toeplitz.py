"""The Toeplitz mixer: does dividing by the kernel's sum help, do projections, and what do they
cost?

The original trained its four variants with raw kernels for 20,000 steps of 16 windows of 512
tokens, AdamW at 5e-4 with 500 steps of warm-up. Kernels through softplus, a later change, have no
sums that cross zero. Its texts were written from a cache, and anew for each token with all heads at
once or in turn; ours by models as initialised, for speed does not depend on the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

from specs.online import KINDS
from train.study.claims import Claim, time_ratio
from train.study.figures import Row, best_rows, listed, ranking, rows
from train.study.plan import Experiment, Kind, Plan
from train.study.setup import Setup
from train.study.timing import Figures, Measure, steps
from train.study.writing import ANEW, IN_TURN, writing

ORIGINAL = {"nomean_proj": 2.1107, "mean_proj": 2.1927, "nomean_noproj": 2.2048,
            "mean_noproj": 2.3473}  # held-out loss
VARIANTS = {f"{'' if mean else 'no'}mean_{'' if proj else 'no'}proj":
            {"do_toep_mean": mean, "do_toep_proj": proj}
            for mean in (False, True) for proj in (False, True)}
KERNELS = ("softplus", "raw")
EFFECTS = {"the mean, with projections": ("mean_proj", "nomean_proj"),
           "the mean, without": ("mean_noproj", "nomean_noproj"),
           "projections, with the mean": ("mean_proj", "mean_noproj"),
           "projections, without": ("nomean_proj", "nomean_noproj")}
WRITERS = {f"{name}-softplus": name for name in VARIANTS}
WAYS = {KINDS[0]: ("from a cache", "1,132–1,446 tokens/s"),
        KINDS[1]: ("from a cache and sums kept for later", ""),
        ANEW: ("anew, heads at once", "858–1,115 tokens/s"),
        IN_TURN: ("anew, heads in turn", "452–537 tokens/s")}


def setups(full: bool, vocab_size: int) -> dict[str, Setup]:
    """All variants of one width: without projections they have fewer parameters."""
    settings: dict[str, Any] = {"batch_size": 16, "warmup": 500} if full else {"batch_size": 8}
    preset, block = ("original", 512) if full else ("demo", 128)
    return {f"{name}-{kernel}": Setup(
        "toeplitz", {"block_size": block, "kernel": kernel, **fields}, settings, preset,
        (5e-4 if full else 2e-3,)) for kernel in KERNELS for name, fields in VARIANTS.items()}


def measured(plan: Plan) -> Figures:
    """Of each variant that wrote, by its name."""
    found = plan.found.get("writing-measure", {})
    return {name: found[setup] for setup, name in WRITERS.items() if setup in found}


def rates(way: str) -> Callable[[Plan], str]:
    def said(plan: Plan) -> str:
        each = [f"{name} {found['rates'][way]:,.0f}" for name, found in measured(plan).items()]
        return f"{listed(each)} tokens/s" if each else ""

    return said


CLAIMS = (
    *(Claim(f"{item}, {kernel}", f"{ORIGINAL[one] - ORIGINAL[other]:+.3f} nats"
            if kernel == "raw" else "", f"{one}-{kernel}", f"{other}-{kernel}")
      for kernel in KERNELS for item, (one, other) in EFFECTS.items()),
    *(Claim(f"writing {item}", says, also=rates(way)) for way, (item, says) in WAYS.items()))


def answer(plan: Plan) -> str:
    every, kind, said = rows(plan), plan.kinds[0], []
    for kernel in KERNELS:
        mine = [row for row in every if row.setup.endswith(f"-{kernel}")]
        if len(best_rows(mine, kind)) == len(VARIANTS):
            said.append(f"Kernels that are {kernel}: {ranking(mine, kind)} nats; "
                        f"{order_of(mine, kind)}.")
    found = {row.setup: row for row in every}
    for what, with_it, without in (("Dividing by the sum", "mean", "nomean"),
                                   ("Projections", "_proj", "_noproj")):
        if words := effects(found, kind, with_it, without):
            said.append(f"{what}, nats: {listed(words)}.")
    if costs := [f"{one} {ratio.middle:.2f} of {other}" for one, other in EFFECTS.values()
                 if (ratio := time_ratio(plan, f"{one}-softplus", f"{other}-softplus"))]:
        said.append(f"What a training step costs: {listed(costs)}.")
    if wrote := measured(plan):
        faster = {name: each["faster"] for name, each in wrote.items()}
        kept = [each["rates"][KINDS[0]] / each["rates"][ANEW] for each in wrote.values()]
        same = max(each["low"] for each in faster.values()) <= min(
            each["high"] for each in faster.values())
        times = [f"{name} {each['middle']:.2f} ({each['low']:.2f}–{each['high']:.2f})"
                 for name, each in faster.items()]
        said.append("Written anew, all heads at once are so many times as fast as one after the "
                    f"other: {listed(times)}, "
                    f"{'alike within' if same else 'differing by more than'} their quartiles. A "
                    f"cache makes that {min(kept):.1f} to {max(kept):.1f} times as fast again.")
    return " ".join(said)


def order_of(mine: list[Row], kind: Kind) -> str:
    """Whether the losses of one kernel are in the original's order."""
    loss = {row.setup.partition("-")[0]: row.loss[kind] for row in mine}
    pairs = list(combinations(ORIGINAL, 2))
    if all(loss[one].below(loss[other]) for one, other in pairs):
        return "the original's order"
    if against := [f"{other} is below {one}" for one, other in pairs
                   if loss[other].below(loss[one])]:
        return f"not the original's order, {' < '.join(ORIGINAL)}, for {listed(against)}"
    return f"the original's order, {' < '.join(ORIGINAL)}, where the seeds do not overlap"


def effects(found: dict[str, Row], kind: Kind, with_it: str, without: str) -> list[str]:
    """What it does to the loss in each pair of setups that differ by nothing else."""
    words = []
    for name, row in found.items():
        other = found.get(name.replace(without, with_it)) if without in name else None
        if other and kind in row.loss and kind in other.loss:
            one, two = other.loss[kind], row.loss[kind]
            sure = "" if one.below(two) or two.below(one) else " (the seeds overlap)"
            words.append(f"{name.replace(without, with_it)} {one.middle - two.middle:+.3f}{sure}")
    return words


EXPERIMENT = Experiment(
    question="Toeplitz mixers: does the mean help, do the projections, and what do they cost?",
    setups=setups, answer=answer, steps=(200, 20_000), minutes=45, contexts=(64,),
    measures={**{f"{one}-{other}-{kernel}": Measure(steps, (f"{one}-{kernel}", f"{other}-{kernel}"))
                 for kernel in KERNELS for one, other in EFFECTS.values()},
              "kernels": Measure(steps, ("nomean_noproj-raw", "nomean_noproj-softplus")),
              "writing": Measure(writing, tuple(WRITERS))},
    claims=CLAIMS)
