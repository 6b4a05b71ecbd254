"""Which architecture learns: all that specs know, at equal parameters."""

from __future__ import annotations

from specs import architectures
from train.study.equal import equal_setups
from train.study.figures import best_rows, listed, probed, ranking, rows
from train.study.plan import Experiment, Plan
from train.study.setup import Setup
from train.study.timing import Measure, steps

RATES = (1e-3, 3e-3, 1e-2)


def setups(full: bool, vocab_size: int) -> dict[str, Setup]:
    """As many parameters as gpt's presets demo and llama have at 256 tokens."""
    if full:
        found = equal_setups(10_818_432, 6, 384, vocab_size, 512, {"batch_size": 16})
    else:
        found = equal_setups(467_808, 4, 96, vocab_size, 128, {"batch_size": 8})
    return {name: Setup(setup.arch, setup.fields, setup.settings, setup.preset, RATES)
            for name, setup in found.items()}


def answer(plan: Plan) -> str:
    every, said = rows(plan), []
    for kind, when in (("tokens", f"After {plan.tokens:,} tokens"), ("time", "After equal time"),
                       ("clock", f"After {plan.minutes or 0:g} minutes")):
        best = best_rows(every, kind) if kind in plan.kinds else []  # type: ignore[arg-type]
        if best:
            said.append(f"{when} **{best[0].setup}** has learnt most: "
                        f"{ranking(every, kind)}"  # type: ignore[arg-type]
                        " nats a token.")
    rates = {row.setup: plan.speed(row.setup) for row in every if row.rate}
    if rates:
        names = sorted(rates, key=lambda name: -rates[name])
        said.append(f"A token of training costs least in {names[0]} ({rates[names[0]]:,.0f} "
                    f"tokens/s), {rates[names[0]] / rates[names[-1]]:.1f} times as much in "
                    f"{names[-1]}.")
    for length in map(str, plan.experiment.contexts):
        decoding = {name: rate for name in plan.setups
                    if (rate := probed(plan, name).get("decoding", {}).get(length))}
        if decoding:
            names = sorted(decoding, key=lambda name: -decoding[name])
            said.append(f"Behind {length} tokens the fastest to decode: " + listed(
                [f"{name} {decoding[name]:,.0f} tokens/s" for name in names[:3]]) + ".")
    said.append("`<`: each seed of the one is below each of the next; `≈`: not.")
    return " ".join(said)


EXPERIMENT = Experiment(
    question="Which architecture learns most from equal tokens, and in equal time?",
    setups=setups, answer=answer, steps=(200, 10_000), minutes=60, contexts=(64, 2048),
    measures={name: Measure(steps, (name, architectures()[0])) for name in architectures()[1:]})
