"""Which trainings a plan asks for, and what their figures are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from specs import architectures, init_weights, spec_type
from specs.backend import BACKENDS, load_backend
from tests.train.made_up import FAST, MIDDLE, SLOW, done
from train import loop
from train.batches import validation_windows
from train.data import Corpus
from train.study.equal import TOLERANCE, equal_setups
from train.study.faults import planted
from train.study.figures import Figure, best_rows, ranking, rows
from train.study.plan import Experiment, Plan
from train.study.setup import Setup


def gpt(rows: int = 4, **fields: Any) -> Setup:
    return Setup("gpt", {"block_size": 8, **fields}, {"batch_size": rows}, "tiny", (1e-2, 2e-2))


def plan(choose: bool = True, **options: Any) -> Plan:
    setups = {"a": gpt(), "b": gpt(2), "c": gpt(8)}
    made = Experiment("?", lambda *_: setups, lambda _: "", (100, 100), 1, choose)
    return Plan(made, setups, 100, **options)


def sweep(made: Plan, losses: dict[float, float]) -> list[float]:
    """The learning rates that were tried, in order."""
    tried = []
    while arm := next((arm for arm in made.arms() if arm.setup == "a" and arm.kind == "tokens"
                       and arm.seed == 0 and arm.name not in made.found), None):
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
    assert plan(lrs=(0.5,)).rates("a") == [0.5]
    every = plan(choose=False)
    assert sweep(every, {1e-2: 1, 2e-2: 2}) == every.shown("a") == [1e-2, 2e-2]


def test_what_diverges_is_never_chosen() -> None:
    made = plan()
    for lr, loss in ((1e-2, 3.0), (5e-3, 3.5), (2e-2, 0.0)):
        done(made, made.swept("a", lr), loss)
    made.found[made.swept("a", 2e-2).name] = {"setup": "a", "kind": "tokens", "error": "diverged"}
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
    for lr, loss in ((1e-2, 2.0), (2e-2, 2.5)):
        done(made, made.swept("a", lr), loss)
    failed = made.swept("a", 5e-3)
    assert failed in made.arms()
    made.found[failed.name] = {"setup": "a", "kind": "tokens", "error": "it was killed"}
    assert made.shown("a") == [1e-2]


def test_by_the_clock() -> None:
    made = plan(minutes=2.0)
    kinds = {arm.kind: arm.length for arm in made.arms()}
    assert kinds == {"probe": 0, "clock": 2.0}
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
