"""The five questions with which a note on optimisations ends: do modern options help a small model,
is attention necessary, how long should windows be, what is a better model worth in data, what
stacks?

`original` is GPT-2's form, `modern` has four options of today's models, each of which is also tried
alone; beside them the same with Muon, models of equal size without softmax attention, modern ones
trained on shorter and longer windows, and the original with half and with twice the tokens (and the
time). The `long-` setups are measured and not trained: the note's three ways to compute, alone and
together, on windows four times as long.
"""

from __future__ import annotations

from dataclasses import replace
from math import log2, prod
from typing import Any

from train.study.claims import Claim, difference, time_ratio
from train.study.equal import equal_setups
from train.study.figures import Figure, best_rows, listed, probed, ranking, rows
from train.study.plan import Experiment, Kind, Plan
from train.study.setup import Setup
from train.study.timing import Measure, steps

RATES, MUON_RATES = (1e-3, 3e-3, 1e-2), (1e-2, 2e-2, 4e-2)
GPT2 = {"norm": "layernorm", "pos": "learned", "mlp": "gelu"}
OPTIONS: dict[str, dict[str, Any]] = {"rmsnorm": {"norm": "rmsnorm"}, "rope": {"pos": "rope"},
                                      "swiglu": {"mlp": "swiglu"}, "qk-norm": {"qk_norm": True}}
WITHOUT = ("mamba2", "rwkv7", "hyena")  # softmax attention
FAR = 8
SLOPE = 0.01  # nats that twice the tokens must bring for a gain to be told in tokens
LENGTHS = ("short", "modern", "long")
WAYS: dict[str, dict[str, Any]] = {"recompute": {"recompute": True},
                                   "bfloat16": {"dtype": "bfloat16"},
                                   "fused": {"attention": "sdpa"}}


def setups(full: bool, vocab_size: int) -> dict[str, Setup]:
    """By default gpt's preset demo; the full windows are the note's."""
    layers, width, heads, block, rows = (6, 384, 6, 1024, 8) if full else (4, 96, 4, 128, 8)
    shape = {"n_layer": layers, "n_embd": width, "n_head": heads, "block_size": block,
             "dropout": 0.0}
    original = Setup("gpt", {**shape, **GPT2}, {"batch_size": rows}, rates=RATES)

    def spec(base: Setup, **fields: Any) -> Setup:
        return replace(base, fields={**base.fields, **fields})

    def run(base: Setup, **settings: Any) -> Setup:
        return replace(base, settings={**base.settings, **settings})

    modern = spec(original, **{name: value for fields in OPTIONS.values()
                               for name, value in fields.items()})
    mixers = equal_setups(modern.spec(vocab_size).param_count(), layers, width, vocab_size, block,
                          original.settings)
    plain = replace(run(spec(original, block_size=4 * block), attention="plain", batch_size=2),
                    rates=())
    ways = {f"long-{name}": run(plain, **way) for name, way in WAYS.items()}
    return {
        "original": original,
        **{name: spec(original, **fields) for name, fields in OPTIONS.items()},
        "modern": modern,
        "muon": replace(run(original, optimizer="muon"), rates=MUON_RATES),
        "modern-muon": replace(run(modern, optimizer="muon"), rates=MUON_RATES),
        **{name: replace(mixers[name], rates=RATES) for name in WITHOUT},
        "short": run(spec(modern, block_size=block // 4), batch_size=4 * rows),
        "long": run(spec(modern, block_size=4 * block), batch_size=rows // 4),
        "half": replace(original, share=0.5), "double": replace(original, share=2.0),
        "long-plain": plain, **ways,
        "long-together": run(plain, **{name: value for way in WAYS.values()
                                       for name, value in way.items()})}


MEASURES = {
    **{name: Measure(steps, (f"long-{name}", "long-plain")) for name in (*WAYS, "together")},
    **{name: Measure(steps, (name, "original"))
       for name in (*OPTIONS, "modern", "muon", "modern-muon", *WITHOUT, "short", "long")}}
CLAIMS = (
    *(Claim(item, says, name, "original") for name, item, says in (
        ("rmsnorm", "RMSNorm", "norms 10–15 % faster"), ("rope", "RoPE", "better positions"),
        ("swiglu", "SwiGLU", "better activation"), ("qk-norm", "qk norm", ""),
        ("modern", "these four", ""), ("muon", "Muon", ""), ("modern-muon", "all five", ""),
        ("half", "half the tokens", ""), ("double", "twice the tokens", ""))),
    *(Claim(item, says, f"long-{name}", "long-plain") for name, item, says in (
        ("recompute", "gradient checkpointing", "40–50 % less memory"),
        ("bfloat16", "mixed precision", "2 × as fast, 30–40 % less memory"),
        ("fused", "fused attention", "2–4 × as fast, 5–20 × less memory"),
        ("together", "these three", ""))))


def answer(plan: Plan) -> str:
    """A paragraph for each question of which something is known."""
    parts = {"Do modern options help a small model?": [modern_options(plan, kind)
                                                       for kind in plan.kinds],
             "Is attention necessary?": [*(attention(plan, kind) for kind in plan.kinds),
                                         longer_texts(plan)],
             "How long should windows be?": [lengths(plan, kind) for kind in plan.kinds],
             "What is a better model worth in data?": [data(plan)],
             "What stacks?": [*(stacked(plan, kind) for kind in plan.kinds), ways(plan)]}
    said = {question: " ".join(filter(None, texts)) for question, texts in parts.items()}
    return "\n\n".join(f"**{question}** {text}" for question, text in said.items() if text)


def when(plan: Plan, kind: Kind) -> str:
    return {"tokens": f"After {plan.tokens:,} tokens", "time": "After equal time",
            "clock": f"After {plan.minutes or 0:g} minutes"}[kind]


def gains(plan: Plan, kind: Kind, names: Any) -> dict[str, Figure]:
    """Held-out nats beside the original's, of those that are known."""
    return {name: found for name in names
            if (found := difference(plan, kind, name, "original")) is not None}


def signed(name: str, found: Figure) -> str:
    """Seeds that disagree on the sign make it chance."""
    unsure = " (not in every seed)" if found.low <= 0 <= found.high else ""
    return f"{name} {found.middle:+.3f}{unsure}"


def modern_options(plan: Plan, kind: Kind) -> str:
    found = gains(plan, kind, [*OPTIONS, "modern", "muon", "modern-muon"])
    return found and f"{when(plan, kind)}, nats beside the original: " + listed(
        [signed(name, each) for name, each in found.items()]) + "." or ""


def attention(plan: Plan, kind: Kind) -> str:
    every = [row for row in rows(plan) if row.setup in ("modern", *WITHOUT)]
    return f"{when(plan, kind)}: {ranking(every, kind)}." if len(best_rows(every, kind)) > 1 else ""


def longer_texts(plan: Plan) -> str:
    """Where it breaks down: windows longer than those of the training."""
    kind, said = plan.kinds[0], []
    for row in best_rows([row for row in rows(plan) if row.setup in ("modern", *WITHOUT)], kind):
        own, read = plan.specs[row.setup].block_size, row.read.get(kind, {})
        if own in read and max(read) > own:
            said.append(f"{row.setup} {read[max(read)].middle - read[own].middle:+.3f}")
            longest = f"windows of {max(read)} in place of {own}, the length of their training"
    return f"Read with {longest}, nats: {listed(said)}." if said else ""


def lengths(plan: Plan, kind: Kind) -> str:
    found = best_rows([row for row in rows(plan) if row.setup in LENGTHS], kind)
    said = []
    for length in found[0].read.get(kind, {}) if len(found) > 1 else ():
        ranked = sorted(found, key=lambda row: row.read[kind][length].middle)
        trained = listed([f"{plan.specs[row.setup].block_size} "
                          f"({row.read[kind][length].middle:.3f})" for row in ranked])
        said.append(f"read with windows of {length}, best are those trained on {trained}")
    return f"{when(plan, kind)}, {'; '.join(said)}." if said else ""


def data(plan: Plan) -> str:
    """A gain in nats as the factor by which the original would need more tokens, by the slope of
    its loss over log tokens between as many and twice as many."""
    kind, found = plan.kinds[0], {row.setup: row for row in rows(plan)}
    if kind == "clock" or not {"half", "original", "double"} <= found.keys():
        return ""
    known = [found[name].loss.get(kind) for name in ("half", "original", "double")]
    if None in known:
        return ""
    half, once, twice = (each.middle for each in known if each)
    slope = once - twice
    said = (f"Twice the tokens bring the original from {once:.3f} to {twice:.3f} nats (half of "
            f"them: {half:.3f}), ten percent more about {-slope * log2(1.1):+.3f}.")
    if slope < SLOPE:
        return f"{said} More data hardly help it here."
    worth = [f"{name} ({each.middle:+.3f}) {times(-each.middle / slope)}" for name, each
             in gains(plan, kind, ["modern", "muon", "modern-muon", *WITHOUT]).items()]
    return (f"{said} A loss lower by 10 % is worth {times(0.1 * once / slope)} times the "
            f"tokens; what was measured, in times the tokens: {listed(worth)}.")


def times(doublings: float) -> str:
    """A factor, as far as something may be said of it by a line through three points."""
    return f"over {FAR}" if 2**doublings > FAR else f"{2**doublings:.1f}"


def stacked(plan: Plan, kind: Kind) -> str:
    alone, both = gains(plan, kind, OPTIONS), gains(plan, kind, ["modern", "muon", "modern-muon"])
    said = []
    if len(alone) == len(OPTIONS) and "modern" in both:
        said.append(f"the four options give {sum(each.middle for each in alone.values()):+.3f} "
                    f"nats alone and summed, {both['modern'].middle:+.3f} together")
    if len(both) == 3:
        said.append(f"these and Muon {both['modern'].middle + both['muon'].middle:+.3f} summed, "
                    f"{both['modern-muon'].middle:+.3f} together")
    return f"{when(plan, kind)}, {'; '.join(said)}." if said else ""


def ways(plan: Plan) -> str:
    """Ratios of time and of memory: of each alone, their product, and all of them."""
    said = []
    for what, ratio in (("time", lambda name: time_ratio(plan, f"long-{name}", "long-plain")),
                        ("memory", lambda name: memory_ratio(plan, name))):
        found = {name: each.middle for name in (*WAYS, "together") if (each := ratio(name))}
        if len(found) == len(WAYS) + 1:
            together = found.pop("together")
            alone = listed([f"{name} {value:.2f}" for name, value in found.items()])
            said.append(f"a step takes of the {what} {alone}, their product is "
                        f"{prod(found.values()):.2f}, together it is {together:.2f}")
    return f"In long windows, {'; '.join(said)}." if said else ""


def memory_ratio(plan: Plan, name: str) -> Figure | None:
    mine, base = (probed(plan, f"long-{each}").get("memory") for each in (name, "plain"))
    return Figure(*[mine / base] * 3) if mine and base else None


EXPERIMENT = Experiment(
    question="Modern options, attention, length, data: what helps a small model, and what stacks?",
    setups=setups, answer=answer, steps=(200, 10_000), minutes=45, measures=MEASURES,
    claims=CLAIMS)
