"""A simple transformer with a mixture of experts and Muon, beside dense models of its active and of
its total size.

The original: 384 wide, 6 layers, 8 heads, 8 experts of 1,536 with 2 for each token, 512 tokens,
Muon at 0.01 beside AdamW at 0.001, batch 24 times 4 accumulated, cosine with warm-up, half
precision. The dense models are Llama's form, with SwiGLU where the original's experts have SiLU.
"""

from __future__ import annotations

from typing import Any

from specs import Spec, gpt, moe
from train.study.claims import time_ratio
from train.study.figures import Row, rows, spread
from train.study.plan import Experiment, Plan
from train.study.setup import Setup
from train.study.timing import Measure, steps

LR = 1e-2


def setups(full: bool, vocab_size: int) -> dict[str, Setup]:
    """The dense models' MLPs are as wide as the number of parameters wants."""
    preset, block = ("384x6", 512) if full else ("demo", 128)
    settings: dict[str, Any] = {"batch_size": 8, "micro_batch": 2, "optimizer": "muon"}
    if full:
        settings |= {"batch_size": 96, "micro_batch": 24, "dtype": "bfloat16", "eval_every": 500}
    mixture = Setup("moe", {"block_size": block}, settings, preset, (LR,))
    spec = mixture.spec(vocab_size)
    return {"moe": mixture, "dense-active": dense(mixture, spec, spec.active_param_count()),
            "dense-total": dense(mixture, spec, spec.param_count())}


def dense(mixture: Setup, spec: Spec, size: int) -> Setup:
    """A gpt of the same width and depth, with `size` parameters in all."""
    assert isinstance(spec, moe.Spec)
    fields = {**mixture.fields, "n_layer": spec.n_layer, "n_embd": spec.n_embd,
              "n_head": spec.n_head, "dropout": spec.dropout}
    few, more = (gpt.Spec(**fields, d_ff=width, vocab_size=spec.vocab_size).param_count()
                 for width in (1, 2))
    width = 1 + round((size - few) / (more - few))
    return Setup("gpt", {**fields, "d_ff": width}, mixture.settings, rates=mixture.rates)


def answer(plan: Plan) -> str:
    found = {row.setup: row for row in rows(plan)}
    said = []
    for kind in plan.kinds:
        when = {"tokens": f"After {plan.tokens:,} tokens", "time": "In equal time",
                "clock": f"After {plan.minutes or 0:g} minutes"}[kind]
        known = [f"{name} {spread(row.loss[kind])}" for name, row in found.items()
                 if kind in row.loss]
        if known:
            said.append(f"{when}: {', '.join(known)} nats a token.")
        if "moe" in found and kind in found["moe"].loss:
            said += [versus(plan, found["moe"], row, kind) for name, row in found.items()
                     if name != "moe" and kind in row.loss]
    return " ".join(said)


def versus(plan: Plan, mixture: Row, row: Row, kind: Any) -> str:
    mine, other = mixture.loss[kind], row.loss[kind]
    sure = mine.below(other) or other.below(mine)
    ratio = time_ratio(plan, row.setup, "moe")
    speed = f" and trains at {ratio.middle:.2f} times its tokens/s" if ratio else ""
    return (f"The mixture is {abs(mine.middle - other.middle):.3f} nats "
            f"{'below' if mine.middle < other.middle else 'above'} {row.setup}"
            f"{'' if sure else ' (the seeds overlap)'}{speed}.")


EXPERIMENT = Experiment(
    question="What does a mixture of experts gain over dense models of its active and total size?",
    setups=setups, answer=answer, steps=(200, 20_000), minutes=20, contexts=(64, 512),
    measures={name: Measure(steps, (name, "moe")) for name in ("dense-active", "dense-total")})
