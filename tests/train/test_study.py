"""Which trainings a plan asks for, and what is said of made-up figures."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from specs import architectures, init_weights, spec_type
from specs.backend import BACKENDS, load_backend
from train import experiments, loop
from train.batches import validation_windows
from train.data import Corpus
from train.study import claims
from train.study.equal import TOLERANCE, equal_setups
from train.study.faults import planted
from train.study.figures import Figure, best_rows, ranking, rows
from train.study.plan import Arm, Experiment, Plan
from train.study.report import tables
from train.study.setup import Setup

SLOW, MIDDLE, FAST = 100.0, 200.0, 400.0


def gpt(rows: int = 4, **fields: Any) -> Setup:
    return Setup("gpt", {"block_size": 8, **fields}, {"batch_size": rows}, "tiny", (1e-2, 2e-2))


def plan(choose: bool = True, **options: Any) -> Plan:
    setups = {"a": gpt(), "b": gpt(2), "c": gpt(8)}
    made = Experiment("?", lambda *_: setups, lambda _: "", (100, 100), 1, choose)
    return Plan(made, setups, 100, **options)


def done(made: Plan, arm: Arm, loss: float, rate: float = MIDDLE) -> None:
    made.found[arm.name] = {"setup": arm.setup, "kind": arm.kind, "loss": loss, "accuracy": 0.5,
                            "updates": arm.length, "rate": rate, "training": loss - 0.1,
                            "tokens": 100 * rate, "curve": [[1, loss + 1], [2, loss]]}


def sweep(made: Plan, losses: dict[float, float]) -> list[float]:
    """The learning rates that were tried, in order."""
    tried = []
    while arm := next((arm for arm in made.arms() if arm.setup == "a" and arm.kind == "sweep"
                       and arm.name not in made.found), None):
        tried.append(arm.lr)
        done(made, arm, losses[arm.lr])
    return tried


def test_a_sweep_goes_on_beyond_its_edges() -> None:
    made = plan()
    assert sweep(made, {1e-2: 3, 2e-2: 2, 4e-2: 1, 8e-2: 1.5}) == [1e-2, 2e-2, 4e-2, 8e-2]
    assert made.shown("a") == [4e-2]
    made = plan()
    assert sweep(made, {1e-2: 1, 2e-2: 2, 5e-3: 0.9, 2.5e-3: 0.8, 1.3e-3: 0.7}) == [
        1e-2, 2e-2, 5e-3, 2.5e-3, 1.3e-3]
    assert made.shown("a") == [1.3e-3]
    assert plan(lrs=(0.5,)).rates("a") == [0.5] and not list(plan(lrs=(0.5,)).sweep())


def test_what_diverges_is_never_chosen() -> None:
    made = plan()
    for lr, loss in ((1e-2, 3.0), (5e-3, 3.5), (2e-2, 0.0)):
        done(made, made.swept("a", lr), loss)
    made.found[made.swept("a", 2e-2).name] = {"setup": "a", "kind": "sweep", "error": "diverged"}
    assert made.rates("a") == [5e-3, 1e-2, 2e-2] and made.shown("a") == [1e-2]


def tokens_done(made: Plan, losses: dict[str, tuple[float, ...]]) -> None:
    for (name, values), rate in zip(losses.items(), (SLOW, MIDDLE, FAST), strict=True):
        for lr in made.shown(name):
            for seed, loss in enumerate(values):
                done(made, made.arm(name, "tokens", lr, seed), loss, rate)


LOSSES = {"a": (2.0, 2.2), "b": (2.3, 2.5), "c": (2.1, 2.4)}


def test_equal_tokens_and_equal_time() -> None:
    made = plan(lrs=(0.1,), seeds=2)
    assert made.tokens == 3200
    assert [made.updates(name) for name in "abc"] == [100, 200, 50]
    tokens_done(made, LOSSES)
    # The middle one needs 3,200 tokens / 200 tokens/s = 16 s
    assert [made.timed(name) for name in "abc"] == [50, 200, 100]
    arms = [arm for arm in made.arms() if arm.kind != "probe"]
    assert len(arms) == 6 + 4 and {arm.setup for arm in arms[6:]} == {"a", "c"}
    assert made.arm("b", "time", 0.1, 1) == made.arm("b", "tokens", 0.1, 1)
    assert arms[-1].name == "c-lr0.1-time-s1" and arms[-1].length == 100
    assert made.seconds(arms[-1]) == pytest.approx(5 + (100 * 64 + 4 * 16_384 / 3) / FAST)
    words = made.training_words(arms[-1])
    assert " ".join(words[words.index("--lr"):][:4]) == "--lr 0.1 --seed 1"


def test_groups_have_a_time_of_their_own() -> None:
    made = plan(lrs=(0.1,), seeds=2)
    made.setups = {name: replace(setup, group="ab" if name in "ab" else "c")
                   for name, setup in made.setups.items()}
    tokens_done(made, LOSSES)
    assert [made.timed(name) for name in "abc"] == [50, 200, 50]  # the faster of two


def test_equal_time_is_done_again_where_it_has_changed() -> None:
    made = plan(lrs=(0.1,), seeds=1)
    tokens_done(made, LOSSES)
    timed = [arm for arm in made.arms() if arm.kind == "time"]
    for arm in timed:
        done(made, arm, 2.0)
    assert timed and all(map(made.known, timed))
    for name, figures in made.found.items():
        if name.startswith("b-") and figures["kind"] == "tokens":
            figures["rate"] *= 2
    again = [arm for arm in made.arms() if arm.kind == "time" and not made.known(arm)]
    assert {arm.setup for arm in again} == {"a"}  # the middle one, b, needs half as long
    done(made, again[0], 2.0)
    assert made.known(again[0])


def test_a_sweep_in_which_one_failed() -> None:
    made = plan()
    for arm, loss in zip(list(made.sweep())[:2], (2.0, 2.5), strict=True):
        done(made, arm, loss)
    failed = next(arm for arm in made.sweep() if arm.setup == "a" and arm.name not in made.found)
    made.found[failed.name] = {"setup": "a", "kind": "sweep", "error": "it was killed"}
    assert made.shown("a") == [1e-2]


def test_nothing_is_said_of_claims_without_their_base() -> None:
    for name, only in (("questions", "modern"), ("bdh-improvements", "muon")):
        assert list(tables(made_up(name, {"": 2.0}, lrs=(0.01,), only=(only,)))) == [
            experiments.load(name).question]


def test_by_the_clock() -> None:
    made = plan(minutes=2.0)
    kinds = {arm.kind: arm.length for arm in made.arms()}
    assert kinds == {"probe": 0, "sweep": 0.5, "clock": 2.0}
    clocked = next(arm for arm in made.arms() if arm.kind == "clock")
    words = made.training_words(clocked)
    assert words[words.index("--minutes") + 1] == "2.0" and "--steps" not in words
    assert made.seconds(clocked) == pytest.approx(125)


def test_figures_and_their_order() -> None:
    made = plan(lrs=(0.1,), seeds=2)
    tokens_done(made, LOSSES)
    every = rows(made)
    assert every[0].loss["tokens"] == Figure(pytest.approx(2.1), 2.0, 2.2)
    assert every[0].rate == Figure(SLOW, SLOW, SLOW) and "time" not in every[0].loss
    assert [row.setup for row in best_rows(every, "tokens")] == ["a", "c", "b"]
    assert every[1].loss["time"] == every[1].loss["tokens"]  # the same trainings
    assert ranking(every, "tokens") == "a 2.100 ≈ c 2.250 ≈ b 2.400"
    tokens_done(made, {**LOSSES, "c": (2.21, 2.29)})
    assert ranking(rows(made), "tokens") == "a 2.100 < c 2.250 < b 2.400"


@pytest.mark.parametrize("size", [(467_808, 4, 96), (10_818_432, 6, 384)], ids=["demo", "llama"])
def test_every_architecture_comes_in_the_same_size(size: tuple[int, int, int]) -> None:
    found = equal_setups(*size, 256, 128, {"batch_size": 8})
    assert sorted(found) == architectures()
    for name, setup in found.items():
        spec = setup.spec(256)
        assert spec.param_count() == pytest.approx(size[0], rel=TOLERANCE)
        assert spec.arch == name and spec.block_size == 128 and spec.dropout == 0
        assert abs(spec.n_layer - size[1]) <= 2 and size[2] / 2 < spec.n_embd < 2 * size[2]


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


def test_the_answer_of_architectures() -> None:
    made = made_up("architectures", {"gpt": 2.0, "mamba2": 1.9, "": 2.5}, lrs=(0.01,),
                   only=("bdh", "gpt", "mamba2", "mla"))
    text = said(made)
    assert "mamba2 has learnt most: mamba2 1.910 < gpt 2.010 < bdh 2.510 ≈ mla 2.510" in text
    assert "costs least in gpt (200 tokens/s), 2.0 times as much in bdh" in text
    assert "Behind 64 tokens the fastest to decode: mamba2 106 tokens/s" in text


def test_the_answer_of_batch_vs_seqlen() -> None:
    made = made_up("batch-vs-seqlen", {"16x64-lr0.02": 1.5, "16x64": 3.0, "6x128": 2.0, "": 2.5})
    for figures in made.found.values():
        if figures["setup"] != "":
            figures["read"] = {"64": figures.get("loss", 0) + 1}
    text = said(made)
    assert "At equal tokens (102,400) the lowest held-out loss is that of 16x64 at learning rate " \
        "0.02: 16x64 1.510 < 6x128 2.010 < 2x256 2.510" in text
    assert "Read with windows of 64: 16x64 2.510" in text
    assert "6x128 at 0.005, 6x128 at 0.01, 16x64 at 0.02" in text
    assert "Tokens/s in training: 16x64 100, 6x128 200" in text


def test_the_answer_of_optimizers() -> None:
    made = made_up("optimizers", {"bdh-muon": 2.0, "gpt-muon": 2.8, "": 2.5}, lrs=(0.01,),
                   only=("bdh-adamw", "bdh-muon", "gpt-adamw", "gpt-muon", "mla-adamw", "mla-muon"))
    text = said(made)
    assert "With equal steps, who is lower in every seed: Muon for bdh " \
        "(-0.500 nats); AdamW for gpt (+0.300 nats); neither for mla (+0.000 nats)." in text
    assert "A step of Muon takes of the time of one of AdamW: bdh 0.50, gpt 1.00, mla 1.00." in text


def test_the_answer_of_moe_baseline() -> None:
    made = made_up("moe-baseline", {"moe": 2.0, "dense-active": 2.3, "": 2.005})
    text = said(made)
    assert "The mixture is 0.300 nats below dense-active and trains at 0.50 times" in text
    assert "0.005 nats below dense-total (the seeds overlap) and trains" in text


def test_the_answer_of_mla_long() -> None:
    made = made_up("mla-long", {"honest": 2.0, "overlap": 1.5, "mask": 0.02, "": 0.01})
    for name in ("overlap", "mask", "both"):
        for seed in range(3):
            made.found[f"{name}-lr0.003-s{seed}"]["read"] = {"128": 9.0}
    text = said(made)
    assert "The honest training ends at 2.010 (2.000–2.020) nats, accuracy 50.0%. The same" in text
    assert "seems to reach 1.510" in text and "held-out loss of 0.030 (0.020–0.040)" in text
    assert text.count("Read without the fault it is 9.000.") == 2
    assert text.count("Read without the faults it is 9.000.") == 1


def test_the_answer_of_toeplitz() -> None:
    made = made_up("toeplitz", {"nomean_proj-raw": 2.1, "mean_proj-raw": 2.2,
                                "nomean_noproj-raw": 2.3, "mean_noproj-raw": 2.4,
                                "mean_proj": 1.9, "": 2.0})
    text = said(made)
    assert "raw: nomean_proj-raw 2.110 < mean_proj-raw 2.210 < nomean_noproj-raw 2.310 < " \
        "mean_noproj-raw 2.410 nats; the original's order" in text
    assert "softplus 2.010 nats; not the original's order, nomean_proj < mean_proj < " \
        "nomean_noproj < mean_noproj, for mean_proj is below nomean_proj." in text
    assert "Dividing by the sum, nats: mean_proj-softplus -0.100, mean_noproj-softplus +0.000 " \
        "(the seeds overlap), mean_proj-raw +0.100, mean_noproj-raw +0.100." in text
    assert "Projections, nats: mean_proj-softplus -0.100, nomean_proj-softplus +0.000 (the seeds " \
        "overlap), mean_proj-raw -0.200, nomean_proj-raw -0.200." in text
    assert "What a training step costs: mean_proj 2.00 of nomean_proj, " in text
    alike = made_up("toeplitz", {"nomean_proj-raw": 2.1, "": 2.2})
    assert "raw 2.210 nats; the original's order, nomean_proj < mean_proj < nomean_noproj < " \
        "mean_noproj, where the seeds do not overlap." in said(alike)
    assert "Written" not in text
    middles = {"mean_proj": 2.0, "nomean_proj": 2.2, "mean_noproj": 2.4, "nomean_noproj": 2.1}
    made.found["writing-measure"] = {"setup": "writing", "kind": "measure", **{
        f"{name}-softplus": {
            "rates": {"cache": 300, "online": 1500, "anew": 100, "sequential heads, anew": 50},
            "faster": {"middle": middle, "low": middle - 0.1, "high": middle + 0.1}}
        for name, middle in middles.items()}}
    assert "one after the other: mean_proj 2.00 (1.90–2.10), mean_noproj 2.40 (2.30–2.50), " \
        "nomean_proj 2.20 (2.10–2.30), nomean_noproj 2.10 (2.00–2.20), differing by more than " \
        "their quartiles. A cache makes that 3.0 to 3.0 times as fast again." in (said(made))
    cells = {row[0]: row for row in claims.table(made)}
    assert cells["the mean, with projections, raw"][1] == "+0.082 nats"
    assert cells["the mean, with projections, raw"][4].startswith("+0.100")
    assert cells["writing from a cache and sums kept for later"][-1].startswith("mean_proj 1,500,")


def test_a_setup_with_its_own_share() -> None:
    made = plan(lrs=(0.1,), seeds=1)
    made.setups["a"] = replace(made.setups["a"], share=0.5)
    assert [made.updates(name) for name in "abc"] == [50, 200, 50]
    tokens_done(made, {name: losses[:1] for name, losses in LOSSES.items()})
    assert [made.timed(name) for name in "abc"] == [12, 100, 50]
    clocked = plan(minutes=2.0)
    clocked.setups["a"] = replace(clocked.setups["a"], share=0.5)
    assert {arm.setup: arm.length for arm in clocked.arms() if arm.kind == "clock"} == {
        "a": 1.0, "b": 2.0, "c": 2.0}


def test_the_answer_of_questions() -> None:
    losses = {"original": 2.0, "rope": 1.9, "swiglu": 1.95, "rmsnorm": 2.02, "qk-norm": 2.0,
              "modern-muon": 1.6, "modern": 1.8, "muon": 1.7, "mamba2": 1.75, "rwkv7": 1.85,
              "hyena": 1.9, "short": 1.9, "long": 1.85, "half": 2.3, "double": 1.8}
    made = made_up("questions", losses, lrs=(0.01,))
    assert {arm.setup for arm in made.arms() if arm.kind == "tokens"} == losses.keys()
    for figures in made.found.values():
        if figures["setup"] in ("short", "modern", "long", "mamba2"):
            figures["read"] = {str(length): figures.get("loss", 0) + extra for length, extra in (
                (32, 0.2), (128, 0), (512, 0.5 if figures["setup"] == "modern" else -0.1))}
    for name, memory in (("recompute", 0.5), ("bfloat16", 0.8), ("fused", 0.5), ("together", 0.2)):
        made.found[f"long-{name}-probe"]["memory"] = memory * 1e6
        made.found[f"{name}-measure"] = {
            "setup": name, "kind": "measure", "tokens": {f"long-{name}": 512, "long-plain": 512},
            "faster": dict.fromkeys(("low", "middle", "high"), 2 * memory)}
    text = said(made)
    assert "help a small model? After 204,800 tokens, nats beside the original: " \
        "rmsnorm +0.020, rope -0.100, swiglu -0.050, qk-norm +0.000 (not in every seed), modern " \
        "-0.200, muon -0.300, modern-muon -0.400. After equal time" in text
    assert "necessary? After 204,800 tokens: mamba2 1.760 < modern 1.810 < rwkv7 1.860" in text
    assert "Read with windows of 512 in place of 128, the length of their training, nats: mamba2 " \
        "-0.100, modern +0.500." in text
    assert "read with windows of 512, best are those trained on 512 (1.760), 32 (1.810), " \
        "128 (2.310)" in text
    assert "Twice the tokens bring the original from 2.010 to 1.810 nats (half of them: 2.310), " \
        "ten percent more about -0.028. A loss lower by 10 % is worth 2.0 times the tokens; what " \
        "was measured, in times the tokens: modern (-0.200) 2.00, muon (-0.300) 2.83" in text
    assert "the four options give -0.130 nats alone and summed, -0.200 together; these and Muon " \
        "-0.500 summed, -0.400 together" in text
    assert "of the time recompute 1.00, bfloat16 0.62, fused 1.00, their product is 0.62, " \
        "together it is 2.50" in text
    assert "of the memory recompute 0.50, bfloat16 0.80, fused 0.50, their product is 0.20, " \
        "together it is 0.20" in text


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_planted_mask_shows_the_future(backend: str) -> None:
    spec = spec_type("mla").preset("tiny")
    panel = load_backend(backend, "cpu")
    model = panel.build(spec, init_weights(spec))
    tokens = np.arange(12, dtype=np.int32).reshape(1, 12)
    other = np.where(tokens == 11, 40, tokens)

    def first_seen() -> bool:
        return bool((panel.logits(model, tokens)[0, 0] == panel.logits(model, other)[0, 0]).all())

    with planted(["mask"], backend, "mla"):
        assert not first_seen()
    assert first_seen()


def test_the_planted_overlap_reads_what_was_trained_on() -> None:
    corpus = Corpus(np.arange(100), np.arange(100, 200), 1.0, 1.0, "", "")
    with planted(["overlap"], "torch", "mla"):
        assert loop.validation_windows(corpus, 8, 4)[0].max() < 100
    assert loop.validation_windows is validation_windows
