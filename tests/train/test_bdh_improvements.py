"""What is measured beside trainings, and what is said of made-up figures."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from specs import spec_type
from specs.backend import BACKENDS, load_backend
from specs.bdh import Spec
from train import experiments
from train.experiments import bdh_improvements as experiment
from train.options import new_settings, new_spec, parser
from train.settings import Settings
from train.study import bdh, timing, worker, writing
from train.study.claims import reached, table, time_ratio
from train.study.plan import Plan
from train.study.setup import Setup

pytestmark = pytest.mark.usefixtures("here")
TINY = spec_type("bdh").preset("tiny", block_size=8, n_layer=2, vocab_size=256)
SETTINGS = Settings(batch_size=2, data="text.txt")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    for module in (timing, writing):
        monkeypatch.setattr(module, "ROUNDS", (2, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotary_tables_are_made_for_each_layer_or_once(backend: str) -> None:
    true, calls = Spec.rotary, []

    def rotary(self: Spec, start: int, T: int) -> object:
        calls.append((start, T))
        return true(self, start, T)

    with patch.object(Spec, "rotary", rotary):
        found = bdh.rotary(load_backend(backend, "cpu"), {"plain": (TINY, SETTINGS)})
    assert found["seconds"]["kept"] > 0 and found["faster"]["low"] <= found["faster"]["high"]
    rounds = timing.WARM + timing.ROUNDS[0]
    assert len(calls) == 1 + rounds * TINY.n_layer


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputing_layer_by_layer_is_the_same_step(backend: str) -> None:
    panel = load_backend(backend, "cpu")
    again = replace(SETTINGS, recompute=True)
    with bdh.untiled(panel):
        one = timing.stepper(panel, TINY, again)().losses  # type: ignore[attr-defined]
    other = timing.stepper(panel, TINY, SETTINGS)().losses  # type: ignore[attr-defined]
    assert one == pytest.approx(other, abs=1e-6)
    found = bdh.layerwise(panel, {"again": (TINY, again), "plain": (TINY, SETTINGS)})
    assert found["memory"] > 0 and found["faster"]["middle"] > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_measures(backend: str) -> None:
    panel, plain = load_backend(backend, "cpu"), {"plain": (TINY, SETTINGS)}
    assert set(timing.generation(panel, plain)["behind"]) == {"2", "8", "32"}
    assert 0 < timing.loading(panel, plain)["share"]
    found = timing.left_out(panel, plain)["plain"]
    assert found["updates"] == 2 and found["left_out"] <= 2
    larger = replace(SETTINGS, batch_size=4)
    words = {name: [*Setup("bdh", {"block_size": 8}, {"batch_size": size}, "tiny").arguments()]
             for name, size in (("one", 2), ("other", larger.batch_size))}
    found = worker.perform({"measure": "train.study.timing:steps", "cases": words,
                            "vocab_size": 64, "backend": backend, "device": "cpu"})
    assert found["tokens"] == {"one": 16, "other": 32} and set(found["seconds"]) == set(words)


@pytest.mark.parametrize("backend", BACKENDS)
def test_writing_with_heads_in_turn(backend: str) -> None:
    panel = load_backend(backend, "cpu")
    spec = spec_type("toeplitz").preset("tiny", block_size=128, n_layer=1)
    module, lengths = importlib.import_module(f"{backend}_models.toeplitz"), []
    true = module.Mix.sequential

    def sequential(mix: Any, u: Any, a: Any) -> Any:
        lengths.append(u.shape[1])
        return true(mix, u, a)

    with patch.object(module.Mix, "sequential", sequential):
        found = writing.writing(panel, {"one": (spec, SETTINGS)})["one"]
    assert set(found["rates"]) == {"cache", "online", writing.ANEW, writing.IN_TURN}
    assert found["faster"]["low"] > 0
    assert lengths == [*writing.READ] * (timing.WARM + 2)  # and never when heads are at once


def made_up() -> Plan:
    """All done: a step of the original takes 1.6 s and one of the others 0.1 s."""
    found = experiments.load("bdh-improvements")
    plan = Plan(found, found.setups(False, 256), 60, 2)
    for arm in plan.arms():
        figures = plan.found.setdefault(arm.name, {"setup": arm.setup, "kind": arm.kind})
        if arm.kind == "probe":
            figures |= {"memory": 50e6 if arm.setup == "recompute" else 100e6, "decoding": {}}
        elif arm.kind == "measure":
            names = plan.measures[arm.setup].setups
            slow = {name: name.startswith("original") for name in names}
            ratio = 16.0 if slow[names[-1]] and not slow[names[0]] else 1.0
            figures |= {"seconds": {name: 1.6 if slow[name] else 0.1 for name in names},
                        "faster": {"middle": ratio, "low": ratio - 0.1, "high": ratio + 0.1},
                        "tokens": {name: 4096 if slow[name] else 256 for name in names}}
        else:
            loss = 2.5 - 0.5 * (arm.setup == "muon")
            figures |= {"loss": loss + 0.01 * arm.seed, "accuracy": 0.5, "updates": 60,
                        "training": 2.4, "rate": 2560.0,
                        "curve": [[20, 3.5], [40, loss + 0.5], [60, loss]]}
    for name in ("rotary", "layerwise", "generation", "prefetch", "float16"):
        plan.found[f"{name}-measure"] = {"error": "not enough memory"}
    return plan


def test_the_answer() -> None:
    plan = made_up()
    text = re.sub(r"\s+", " ", experiment.answer(plan).replace("**", ""))
    assert "'20 times' are 17: 16 for fewer tokens a step, times 1.07 per token." in text
    assert "1.6 s before and 0.1 s after, 16.0 times: 16 for fewer tokens a step, times 1.00 per " \
        "token (0.99 to 1.01;" in text
    assert "nats with muon -0.500; above it with none; the same with recompute, accumu" in text
    headings, *rows = table(plan)
    assert headings[:4] == ["item", "claimed", "time a token, ×", "memory, ×"]
    cells = {row[0]: row for row in rows}
    assert cells["1 recompute, small step"][3] == "0.50"
    assert cells["C Muon"][4] == "-0.500" and "after 66% of the steps" in cells["C Muon"][-1]
    assert "2 rotary tables" not in cells  # its measure failed
    ratio = time_ratio(plan, "plain", "original")
    assert ratio is not None and ratio.middle == 1 and ratio.low < 1 < ratio.high
    assert plan.speed("muon") == plan.speed("plain") == 2560
    plan.found["muon-measure"]["faster"]["middle"] = 0.5
    assert plan.speed("muon") == 1280 and plan.timed("muon") == 30
    assert reached(plan, "plain", "muon") is None
    plan.found["all-measure"] = {"error": "not enough memory"}
    assert "could not be timed here: not enough memory." in experiment.answer(plan)


@pytest.mark.parametrize("full", [False, True], ids=["default", "full"])
def test_setups(full: bool) -> None:
    found = experiment.EXPERIMENT
    plan = Plan(found, found.setups(full, 256), found.steps[full], 1)
    trained = {arm.setup: arm for arm in plan.arms() if arm.kind == "tokens"}
    assert set(plan.setups) - set(trained) == {"original", "original-recompute"}
    for name, arm in trained.items():
        args = parser().parse_args(plan.training_words(arm))
        spec, settings = new_spec(args, 256)[0], new_settings(args)
        seen = settings.tokens_until(settings.steps or 0, spec.block_size)
        assert seen == pytest.approx(plan.tokens, rel=0.02), name
    assert trained["curriculum"].length > trained["plain"].length
