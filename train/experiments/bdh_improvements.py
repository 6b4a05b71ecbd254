"""A note on BDH says that eight changes made training 20 times as fast, and proposes nine more:
each of them, its claim beside what it does here.

The note's figures: 60 s for a step of 32 windows of 512 tokens before, 3.5 s for one of 4 × 256
after, on a laptop of 8 GB whose memory the first overflowed. `original` and `improved` have its
shapes, by default a quarter as long; `plain` is the original's training at the improved one's
shape, and each other setup changes one thing of it. With two frameworks on one machine the item A
is the ratio of their steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from train.study.bdh import layerwise, rotary
from train.study.claims import Claim, difference, reached, time_ratio
from train.study.figures import listed, probed
from train.study.plan import Experiment, Kind, Plan
from train.study.setup import Setup
from train.study.timing import Figures, Measure, generation, left_out, loading, steps

BEFORE, AFTER = (32, 512, 60.0), (4, 256, 3.5)  # windows, tokens in each, seconds a step
SAME = 0.01  # nats


def setups(full: bool, vocab_size: int) -> dict[str, Setup]:
    """The original trains at a constant rate without warm-up and clips nothing."""
    short = 1 if full else 4
    length, warmup = AFTER[1] // short, {"warmup": 200} if full else {}
    bare: dict[str, Any] = {"batch_size": AFTER[0], "schedule": "constant", "warmup": 0,
                            "grad_clip": 0, "eval_windows": 64}
    plain = Setup("bdh", {"block_size": length}, bare, "25m" if full else "demo",
                  (1e-3 if full else 3e-3,))

    def run(**settings: Any) -> Setup:
        return replace(plain, settings={**bare, **settings})

    def spec(**fields: Any) -> Setup:
        return replace(plain, fields={**plain.fields, **fields})

    cosine = {"schedule": "cosine", **warmup}
    scheduled = {name: value for name, value in {**bare, **cosine}.items()
                 if name != "warmup" or full}
    original = replace(spec(block_size=BEFORE[1] // short), rates=(),
                       settings={**bare, "batch_size": BEFORE[0]})
    return {
        "plain": plain, "original": original,
        "original-recompute": replace(
            original, settings={**original.settings, "recompute": True}),
        "recompute": run(recompute=True),
        "accumulation": run(batch_size=4 * AFTER[0], micro_batch=AFTER[0]),
        "schedule": replace(plain, settings=scheduled),
        "clipping": run(grad_clip=1),
        "bfloat16": run(dtype="bfloat16"),
        "compile": run(compile=True),
        "improved": replace(plain, settings={**scheduled, "recompute": True, "grad_clip": 1}),
        "per-layer": spec(share_layers=False),
        "muon": replace(run(optimizer="muon"), rates=(5e-3 if full else 2e-2,)),
        "scale-sqrt": spec(score_scale="sqrt"),
        "scale-linear": spec(score_scale="linear"),
        "curriculum": run(seq_curriculum=f"{length // 4}:{length}")}


PAIRS = ("recompute", "accumulation", "bfloat16", "compile", "per-layer", "muon", "scale-sqrt",
         "scale-linear", "schedule", "clipping", "improved")
MEASURES = {
    "all": Measure(steps, ("improved", "original")),
    "smaller": Measure(steps, ("plain", "original")),
    "original-recompute": Measure(steps, ("original-recompute", "original")),
    **{name: Measure(steps, (name, "plain")) for name in PAIRS},
    "layerwise": Measure(layerwise, ("recompute", "plain")),
    "rotary": Measure(rotary, ("plain",)),
    "float16": Measure(left_out, ("plain", "scale-sqrt", "scale-linear")),
    "generation": Measure(generation, ("plain",)),
    "prefetch": Measure(loading, ("plain",)),
    "on-mlx": Measure(steps, ("plain",), "mlx"),
    "on-torch": Measure(steps, ("plain",), "torch")}


def measured(plan: Plan, name: str) -> Figures:
    """What a measure found, nothing where it failed."""
    found = plan.found.get(f"{name}-measure", {})
    return {} if "error" in found else found


def rotary_said(plan: Plan) -> str:
    seconds = measured(plan, "rotary").get("seconds")
    return "" if not seconds else (
        f"a step of one window {1e3 * (seconds['anew'] - seconds['kept']):+.1f} ms of "
        f"{1e3 * seconds['anew']:.0f} where each layer makes its own")


def layerwise_said(plan: Plan) -> str:
    found, plain = measured(plan, "layerwise"), probed(plan, "plain").get("memory")
    return "" if not found else (
        f"by the framework, layer by layer: {1 / found['faster']['middle']:.2f} × the time"
        + (f", {found['memory'] / plain:.2f} × the memory" if plain else ""))


def tiles_said(plan: Plan) -> str:
    found, tiled = measured(plan, "layerwise"), time_ratio(plan, "recompute", "plain")
    return "" if not found or not tiled else (
        f"whole layers in tiles (recompute): {1 / found['faster']['middle'] / tiled.middle:.2f} "
        "times as fast as layer by layer")


def float16_said(plan: Plan) -> str:
    found = measured(plan, "float16")
    return "" if not found else (
        "updates left out in float16 with loss scaling: " + listed(
            [f"{name} {found[name]['left_out']} of {found[name]['updates']}"
             for name in MEASURES["float16"].setups if name in found]))


def generation_said(plan: Plan) -> str:
    behind = measured(plan, "generation").get("behind", {})
    return ", ".join(f"{each['faster']['middle']:.1f} times behind {length}"
                     for length, each in behind.items())


def prefetch_said(plan: Plan) -> str:
    found = measured(plan, "prefetch")
    return "" if not found else (
        f"making a batch is {found['share']:.2%} of a step, the most to be gained; with it "
        f"{found['faster']['middle']:.2f} times as fast")


def panels_said(plan: Plan) -> str:
    each = [measured(plan, f"on-{name}").get("seconds", {}).get("plain")
            for name in ("mlx", "torch")]
    return "" if None in each else (
        f"MLX {1e3 * each[0]:.0f} ms a step, PyTorch {1e3 * each[1]:.0f}: "
        f"{each[1] / each[0]:.2f} times as fast here")


def muon_said(plan: Plan) -> str:
    share = reached(plan, "muon", "plain") if "tokens" in plan.kinds and (
        {"muon", "plain"} <= plan.setups.keys()) else None
    return "" if share is None else f"at AdamW's last loss after {share:.0%} of the steps"


def overfit_said(plan: Plan) -> str:
    gaps = [each["loss"] - each["training"] for each in plan.ended("plain", ("tokens", "clock"))]
    return "" if not gaps else (f"done in all trainings; held-out minus training loss "
                                f"{sum(gaps) / len(gaps):+.2f} nats")


def one(item: str, says: str, setup: str = "", also: Any = lambda plan: "") -> Claim:
    return Claim(item, says, setup, "plain" if setup else "", also)


CLAIMS = (
    Claim("all that was done", "20 × as fast (60 s → 3.5 s a step)", "improved", "original"),
    Claim("1 recompute, large step", "60 % less memory, 20 × as fast", "original-recompute",
          "original"),
    one("1 recompute, small step", "60 % less memory, 20 × as fast", "recompute", layerwise_said),
    one("2 rotary tables", "1.3 ms a forward pass", also=rotary_said),
    one("3 accumulation, 4 ×", "a large batch in the memory of a small one", "accumulation"),
    one("4 cosine, warm-up", "better convergence", "schedule"),
    one("5 clipping", "stability", "clipping"),
    one("6 validation", "shows overfitting", also=overfit_said),
    one("7 bfloat16", "no speedup on M1; float16 breaks", "bfloat16", float16_said),
    one("8 compile", "0.72 × the speed on MPS", "compile"),
    one("A MLX", "2–5 × as fast", also=panels_said),
    one("B, I per-layer parameters", "better loss", "per-layer"),
    one("C Muon", "1.5–2 × faster convergence", "muon", muon_said),
    one("D tiles", "attention 2–4 × as fast", also=tiles_said),
    one("E scores / √N", "stability; float16", "scale-sqrt"),
    one("E scores / N", "stability; float16", "scale-linear"),
    one("F cached generation", "50–100 × as fast", also=generation_said),
    one("G prefetch", "10–20 % more throughput", also=prefetch_said),
    one("H length curriculum", "30 % faster early", "curriculum"))


def answer(plan: Plan) -> str:
    return " ".join(said for said in (
        note(), per_token(plan), memory(plan), *(learnt(plan, kind) for kind in plan.kinds),
        generated(plan)) if said)


def note() -> str:
    fewer = BEFORE[0] * BEFORE[1] / (AFTER[0] * AFTER[1])
    total = BEFORE[2] / AFTER[2]
    return (f"By the note's own figures, {BEFORE[2]:g} s a step and {AFTER[2]:g} s, its '20 times' "
            f"are {total:.0f}: {fewer:.0f} for fewer tokens a step, times {total / fewer:.2f} per "
            "token.")


def per_token(plan: Plan) -> str:
    """The experiment's question."""
    found = measured(plan, "all")
    ratio = time_ratio(plan, "improved", "original")
    if not found or ratio is None:
        error = plan.found.get("all-measure", {}).get("error")
        return f"The two steps could not be timed here: {error}." if error else ""
    one, other = found["tokens"]["improved"], found["tokens"]["original"]
    shorter = plan.costs["original"] / plan.costs["improved"]
    plain = measured(plan, "smaller").get("faster", {}).get("middle")
    text = (f"Here a step takes {found['seconds']['original']:.3g} s before and "
            f"{found['seconds']['improved']:.3g} s after, {found['faster']['middle']:.1f} times: "
            f"{other / one:.0f} for fewer tokens a step, times **{1 / ratio.middle:.2f} per "
            f"token** ({1 / ratio.high:.2f} to {1 / ratio.low:.2f}; by FLOPs {shorter:.2f} for "
            "shorter windows).")
    if plain:
        text += (f" The smaller step with no other change gives {plain:.1f} times, "
                 f"{plain * one / other:.2f} per token.")
    known = [("recompute in the large step", time_ratio(plan, "original-recompute", "original")),
             *((name, time_ratio(plan, name, "plain"))
               for name in ("recompute", "compile", "bfloat16"))]
    parts = [(name, 1 / value.middle) for name, value in known if value]
    return text + (" Per token, alone: " + listed(
        [f"{name} {value:.2f} times as fast" for name, value in parts]) + "." if parts else "")


def memory(plan: Plan) -> str:
    """What a step takes, and what of it is the smaller update."""
    names = ("original", "plain", "improved")
    each = [probed(plan, name)["memory"] / 1e6 for name in names if "memory" in probed(plan, name)]
    if len(each) < len(names):
        return ""
    before, plain, after = each
    return (f"Memory of a step falls from {before:,.0f} to {after:,.0f} MB; the smaller step "
            f"alone brings it to {plain:,.0f}.")


def learnt(plan: Plan, kind: Kind) -> str:
    """Which single changes help and which harm in every seed."""
    when = {"tokens": "At equal tokens", "time": "In equal time",
            "clock": f"After {plan.minutes or 0:g} minutes"}[kind]
    known = [(name, found) for name in plan.setups if name != "plain"
             and (found := difference(plan, kind, name, "plain"))]
    known.sort(key=lambda pair: pair[1].middle)
    better, worse = ([f"{name} {found.middle:+.3f}" for name, found in known if test(found)]
                     for test in (lambda found: found.high < -SAME, lambda found: found.low > SAME))
    same = [name for name, found in known if found.low > -SAME and found.high < SAME]
    return (f"{when} every seed's loss is below that of the plain training by more than {SAME:g} "
            f"nats with {listed(better)}; above it with {listed(worse)}; the same with "
            f"{listed(same)}.") if known else ""


def generated(plan: Plan) -> str:
    said = generation_said(plan)
    return said and f"A token from what decoding keeps is faster than reading all again: {said}."


EXPERIMENT = Experiment(
    question="Improvements to BDH: what of the '20 times' is per token?",
    setups=setups, answer=answer, steps=(60, 3000), minutes=25, measures=MEASURES, claims=CLAIMS)
