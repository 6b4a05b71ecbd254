"""What to fill the memory with, many windows or long ones: 64 × 256, 24 × 512, 8 × 1024.

The model is a mixture of experts trained by Muon at each of three learning rates. Updates are not
of one size, so they are compared at equal tokens and at equal time; and as longer windows are
easier to foretell, each is also read with the windows of the others.
"""

from __future__ import annotations

from train.study.figures import Row, best_rows, listed, ranking, rows, spread
from train.study.plan import Experiment, Kind, Plan
from train.study.setup import Setup
from train.study.timing import Measure, steps

LRS = (5e-3, 1e-2, 2e-2)
SHAPES = {False: ((16, 64), (6, 128), (2, 256)), True: ((64, 256), (24, 512), (8, 1024))}


def setups(full: bool, vocab_size: int) -> dict[str, Setup]:
    """By default a quarter of the windows, each a quarter as long, of a model of 1.4M."""
    return {f"{rows}x{length}": Setup(
        "moe", {"block_size": length}, {"batch_size": rows, "optimizer": "muon"},
        "384x6" if full else "demo", LRS) for rows, length in SHAPES[full]}


MEASURES = {name: Measure(steps, (name, "{}x{}".format(*first)))
            for first, *others in SHAPES.values() for name in ("{}x{}".format(*each)
                                                               for each in others)}


def answer(plan: Plan) -> str:
    every = rows(plan)
    said = []
    for kind in plan.kinds:
        when = {"tokens": f"At equal tokens ({plan.tokens:,})", "time": "At equal time",
                "clock": f"After {plan.minutes or 0:g} minutes"}[kind]
        best = best_rows(every, kind)
        if not best:
            continue
        said.append(f"{when} the lowest held-out loss is that of **{best[0].setup}** at learning "
                    f"rate {best[0].lr:g}: {ranking(every, kind)}, each at its best rate and read "
                    "with windows of its own.")
        for length in best[0].read.get(kind, {}):
            read = sorted(best, key=lambda row, kind=kind, length=length:  # type: ignore[misc]
                          row.read[kind][length].middle)
            said.append(f"Read with windows of {length}: " + listed(
                [f"{row.setup} {spread(row.read[kind][length])}" for row in read]) + ".")
        if len(best) > 1:
            said.append(winners(every, kind, max(best[0].read[kind])))
    speeds = {row.setup: plan.speed(row.setup) for row in every if row.rate}
    if speeds:
        said.append("Tokens/s in training: " + listed([f"{name} {rate:,.0f}" for name, rate
                                                       in speeds.items()]) + ".")
    return " ".join(said)


def winners(every: list[Row], kind: Kind, length: int) -> str:
    """Who is best at each learning rate, all read with windows of this length."""
    said = []
    for lr in sorted({row.lr for row in every if kind in row.loss}):
        first, *others = sorted([row for row in every if row.lr == lr and kind in row.read],
                                key=lambda row: row.read[kind][length].middle)
        sure = all(first.read[kind][length].below(row.read[kind][length]) for row in others)
        said.append(f"{first.setup} at {lr:g}{'' if sure else ' (the seeds overlap)'}")
    return f"With windows of {length} the best at each learning rate: {listed(said)}."


EXPERIMENT = Experiment(
    question="What is better to fill the memory with, a large batch or long sequences?",
    setups=setups, answer=answer, steps=(100, 1000), minutes=45, choose=False,
    measures=MEASURES)
