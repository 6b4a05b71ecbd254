"""How a latent-attention model came to a validation loss of 0.0174: the honest training beside two
faults, planted one at a time.

The original: 12 layers of 512 with 8 heads, 10,000 steps of 16 windows, a checkpoint every 1,000,
an evaluation every 100, cosine with 5 % of warm-up; 0.0174 after 1,500 steps, 0.01 expected.
"""

from __future__ import annotations

from typing import Any

from train.study.figures import Row, rows, spread
from train.study.plan import Experiment, Kind, Plan
from train.study.setup import Setup

CLAIM = 0.0174  # nats
SETUPS = {"honest": (), "overlap": ("overlap",), "mask": ("mask",), "both": ("overlap", "mask")}


def setups(full: bool, vocab_size: int) -> dict[str, Setup]:
    """By default a text that is small enough to be read ten times, as the original's was."""
    settings: dict[str, Any] = {"batch_size": 8, "data_tokens": 20_000}
    if full:
        settings = {"batch_size": 16, "warmup": 500, "eval_every": 100, "save_every": 1000,
                    "keep": 10}
    preset, block = ("mla-512x12", 512) if full else ("demo", 128)
    return {name: Setup("mla", {"block_size": block}, settings, preset, (1e-3 if full else 3e-3,),
                        faults=faults) for name, faults in SETUPS.items()}


def answer(plan: Plan) -> str:
    found = {row.setup: row for row in rows(plan)}
    kind: Kind = plan.kinds[0]
    said = []
    for name, text in {
            "honest": "The honest training ends at {}, accuracy {}.",
            "overlap": "The same model, evaluated on windows that overlap those trained on, seems "
                       "to reach {}, accuracy {}.",
            "mask": "With the mask added as ones a held-out loss of {} and an accuracy of {} "
                    "come out.",
            "both": "With both faults: {}, accuracy {}."}.items():
        if name in found and kind in found[name].loss:
            row = found[name]
            said.append(text.format(f"{spread(row.loss[kind])} nats",
                                    spread(row.accuracy[kind], ".1%")) + truth(row, kind))
    return " ".join([*said, f"The original's {CLAIM} nats at 99.7 % are the sign of a model that "
                     "sees what it is to foretell."])


def truth(row: Row, kind: Kind) -> str:
    """What the weights of a faulty training are worth without the faults."""
    if row.setup == "honest" or not row.read.get(kind):
        return ""
    honest = next(iter(row.read[kind].values()))
    return f" Read without the fault{'s' * (row.setup == 'both')} it is {spread(honest)}."


EXPERIMENT = Experiment(
    question="How did a validation loss of 0.0174 come about?",
    setups=setups, answer=answer, steps=(200, 10_000), minutes=15, choose=False, timed=False)
