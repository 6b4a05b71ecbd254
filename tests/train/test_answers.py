"""What experiments say of made-up figures."""

from __future__ import annotations

from tests.train.made_up import made_up, said
from train import experiments
from train.study import claims
from train.study.report import tables


def test_nothing_is_said_of_claims_without_their_base() -> None:
    for name, only in (("questions", "modern"), ("bdh-improvements", "muon")):
        assert list(tables(made_up(name, {"": 2.0}, lrs=(0.01,), only=(only,)))) == [
            experiments.load(name).question]


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
    assert "Dividing by the sum, nats: mean_noproj-softplus +0.000 (the seeds overlap), " \
        "mean_proj-softplus -0.100, mean_noproj-raw +0.100, mean_proj-raw +0.100." in text
    assert "Projections, nats: nomean_proj-softplus +0.000 (the seeds overlap), " \
        "mean_proj-softplus -0.100, nomean_proj-raw -0.200, mean_proj-raw -0.200." in text
    assert "What a training step costs: mean_proj 1.00 of nomean_proj, " in text
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
    assert "other: nomean_noproj 2.10 (2.00–2.20), nomean_proj 2.20 (2.10–2.30), " \
        "mean_noproj 2.40 (2.30–2.50), mean_proj 2.00 (1.90–2.10), differing by more than " \
        "their quartiles. A cache makes that 3.0 to 3.0 times as fast again." in (said(made))
    cells = {row[0]: row for row in claims.table(made)}
    assert cells["the mean, with projections, raw"][1] == "+0.082 nats"
    assert cells["the mean, with projections, raw"][4].startswith("+0.100")
    wrote = cells["writing from a cache and sums kept for later"][-1]
    assert wrote.startswith("nomean_noproj 1,500,")


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
        "was measured, in times the tokens: modern (-0.200) 2.0, muon (-0.300) 2.8" in text
    assert "the four options give -0.130 nats alone and summed, -0.200 together; these and Muon " \
        "-0.500 summed, -0.400 together" in text
    assert "of the time recompute 1.00, bfloat16 0.62, fused 1.00, their product is 0.62, " \
        "together it is 2.50" in text
    assert "of the memory recompute 0.50, bfloat16 0.80, fused 0.50, their product is 0.20, " \
        "together it is 0.20" in text
