"""The claims' measurement from end to end at the smallest sizes, and its arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import answers, optimizations, trial
from bench.answers import Figure, Shown, key
from bench.claims import OPTIONS, Plan
from specs import UserError, spec_type
from specs.backend import BACKENDS, load_backend

both = pytest.mark.needs(*BACKENDS)
SMALLEST = ["--layers", "1", "--width", "16", "--heads", "2", "--block", "16", "--batch", "2",
            "--long", "32", "--lengths", "8", "16", "--steps", "3", "--rounds", "1",
            "--data", "text.txt"]
ONLY = ["recompute", "rope", "swiglu", "moe"]
CLAIMS = {option.key: option for option in OPTIONS}


class Here:
    """A worker in this process, which remembers what it was asked."""

    asked: list[dict[str, Any]] = []

    def __init__(self, backend: str, device: str | None):
        self.backend = backend

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(task)
        backend = load_backend(self.backend, "cpu")
        return {**trial.measure(backend, task), "versions": backend.versions()}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command; what it asked of workers."""
    monkeypatch.setattr(optimizations, "Worker", Here)
    monkeypatch.setattr(optimizations, "TIMED_TOKENS", 96)
    monkeypatch.setattr(optimizations, "SECONDS", 0.01)
    monkeypatch.setattr("train.files.flush", lambda _: None)  # both would take most of the time
    for backend in BACKENDS:
        monkeypatch.setattr(f"{backend}_models.backend.Backend.matmul_rate", lambda *_: 1e9)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    (tmp_path / "text.txt").write_text(" ".join(map(str, range(1000))))

    def run(*options: str) -> list[dict[str, Any]]:
        Here.asked = []
        monkeypatch.chdir(tmp_path)
        words = ["optimizations.py", *SMALLEST, "--out", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", words)
        optimizations.main()
        return Here.asked

    return run


@both
def test_tables_page_picture_and_going_on(call: Any, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    call("--only", *ONLY, "--seeds", "1")
    said = capsys.readouterr().out
    for text in ("gradient checkpointing", "40–50 % less memory", "Which of them stack?",
                 "Do they help small models?", "What is the best length for a given time?"):
        assert said.count(text) >= len(BACKENDS), text
    file = tmp_path / "optimizations.json"
    document = json.loads(file.read_text())
    for backend in BACKENDS:
        # At equal steps both panels train the same model.
        assert {key(backend, "speed", name, 0) for name in ("baseline", "stack 4", "modern",
                                                            "long plain", "length 8")} <= {
            *document["trials"]}
        for name in ("rope", "moe", "modern"):
            one, other = (document["trials"][key(each, "steps", name, 0)]["loss"]
                          for each in BACKENDS)
            assert one == pytest.approx(other, rel=1e-5)
        assert "loss 8" in document["trials"][key(backend, "time", "length 16", 0)]
    page = (tmp_path / "optimizations.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * ((2 + 6) + (2 + 4) + (2 + 2))  # headings, rules, rows
    assert all(CLAIMS[name].title in page for name in ONLY) and "## torch" in page
    assert (tmp_path / "optimizations.png").stat().st_size > 20_000

    assert call("--only", *ONLY, "--seeds", "1") == []
    del document["trials"][key("torch", "speed", "long sdpa", 0)]
    file.write_text(json.dumps(document))
    task, = call("--only", *ONLY, "--seeds", "1")
    assert "block_size=32" in task["arguments"] and "sdpa" in task["arguments"]
    more = call("--only", *ONLY, "--seeds", "2", "--backend", "torch")
    assert more and all("--seed 1" in " ".join(task["arguments"]) for task in more)
    with pytest.raises(UserError, match="made with another only: choose another --out"):
        call("--only", "rope", "--seeds", "1")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_of_its_own(backend: str) -> None:
    setup = Plan(layers=1, width=16, heads=2, block=16, batch=2).setups()["recompute"]
    task = {"arguments": [*setup.arguments(), "--steps", "3", "--log-every", "1",
                          "--eval-windows", "2"], "lengths": [], "held_out": 64, "seconds": 0.1}
    with optimizations.Worker(backend, "cpu") as worker:
        refused = worker.ask({**task, "arguments": [*task["arguments"], "--data", "nowhere.txt"]})
        assert "nowhere.txt" in refused["error"]
        found = worker.ask(task)
        worker.device = "nowhere"
        assert worker.process
        worker.process.kill()
        worker.process.wait()
        assert "nowhere" in worker.ask(task)["error"]
    assert found["steps"] >= 3 and found["rate"] > 0 and 4 < found["loss"] < 7
    assert found["memory"] > 0 and found["versions"][backend]


@pytest.mark.parametrize("name", Plan().setups())
def test_every_setup_is_a_model(name: str) -> None:
    setup = Plan().setups()[name]
    spec = spec_type(setup.arch).from_dict(setup.fields)
    wanted = {"moe": "moe", f"stack {len(Plan().stacked)}": "moe"}.get(name, "gpt")
    assert spec.arch == wanted
    base = Plan().setups()[Plan().base_of(name)]
    dense = spec_type(base.arch).from_dict(base.fields)
    if name in ("swiglu", "moe"):
        assert spec.active_param_count() == pytest.approx(dense.param_count(), rel=0.02)
    if not name.startswith(("stack", "length")):
        changed = {field for field in setup.fields if setup.fields[field] != base.fields.get(field)}
        changed |= {name for name in setup.settings
                    if setup.settings[name] != base.settings.get(name)}
        assert len(changed) <= (4 if name in ("llama", "modern") else 2), changed


def made_up() -> tuple[dict[str, dict[str, Any]], Plan]:
    """Two rounds and two seeds of two options on one backend."""
    plan = Plan(only=("recompute", "sdpa", "rope"), lengths=(64, 128))
    speeds = {"baseline": ((100, 10), (200, 10)), "recompute": ((80, 5), (160, 5)),
              "sdpa": ((200, 8), (500, 8)), "stack 2": ((160, 4), (320, 4)),
              "rope": ((100, 10), (180, 10)), "stack 3": ((80, 4), (160, 4))}
    losses = {"baseline": (2.0, 2.2), "rope": (1.9, 2.1)}
    trials: dict[str, dict[str, Any]] = {}
    for name, rounds in speeds.items():
        for number, (rate, memory) in enumerate(rounds):
            trials[key("mlx", "speed", name, number)] = {"rate": rate, "memory": memory}
    for name, seeds in losses.items():
        for number, loss in enumerate(seeds):
            trials[key("mlx", "steps", name, number)] = {"loss": loss}
    trials[key("mlx", "time", "rope", 0)] = {"loss": 2.05}
    trials[key("mlx", "time", "rope", 1)] = {"error": "diverged"}
    for length, reads in {64: (1.0, 3.0), 128: (1.5, 1.6)}.items():
        trials[key("mlx", "time", f"length {length}", 0)] = {
            "loss 64": reads[0], "loss 128": reads[1]}
    trials[key("mlx", "speed", "long plain", 0)] = {"error": "not enough memory"}
    return trials, plan


def test_ratios_and_differences() -> None:
    trials, plan = made_up()
    found = answers.show(trials, plan, "mlx", "sdpa")
    assert found.rate == Figure(2.25, 2.0, 2.5) and found.memory == Figure(0.8, 0.8, 0.8)
    assert found.steps is None
    rope = answers.show(trials, plan, "mlx", "rope")
    assert rope.steps and rope.steps.middle == pytest.approx(-0.1)
    assert rope.time and rope.time.middle == pytest.approx((0.05 - 0.1) / 2)
    assert answers.show(trials, plan, "mlx", "long plain") == Shown(error="not enough memory")
    assert answers.show(trials, plan, "torch", "rope") == Shown()


def test_what_stacks() -> None:
    trials, plan = made_up()
    shown = {name: answers.show(trials, plan, "mlx", name) for name in plan.setups()}
    rows = answers.stack(shown, plan, "rate")
    assert [(option.key, together) for option, together, _ in rows] == [
        ("recompute", 0.8), ("sdpa", 1.6), ("rope", pytest.approx(0.8))]
    assert [product for _, _, product in rows] == pytest.approx([0.8, 1.8, 1.71])
    text = answers.which_stack(shown, plan)
    assert "All 3 together reach 0.80 times the speed" in text and "multiply to 1.71" in text
    assert "alone and on top of those before: gradient checkpointing." in text
    assert "RoPE for learned positions (0.95 alone, 0.50 on top)" in text
    assert "reach 0.40 times the peak memory of the baseline; their single ratios multiply to " \
        "0.40" in text


def test_the_other_answers() -> None:
    trials, plan = made_up()
    _, small, length = answers.answers(trials, plan, "mlx", 1234)
    assert "1,234 parameters" in small and "equal steps is lower: RoPE for learned " in small
    assert "equal time is undecided: RoPE for learned positions (-0.025)" in small
    assert "Faster in every round: fused attention (2.25)" in small
    assert "64 for windows of 64 (1.000 nats), 128 for windows of 128 (1.600 nats)" in length


@pytest.mark.parametrize("name, rate, memory, said", [
    ("recompute", 0.5, 0.6, "holds"), ("recompute", 2, 0.7, "no"), ("sdpa", 1.9, 0.1, "no"),
    ("bfloat16", 2.1, 0.9, "in part"), ("rope", 2, 0.1, "")])
def test_verdicts(name: str, rate: float, memory: float, said: str) -> None:
    shown = Shown(*(Figure(value, value, value) for value in (rate, memory)))
    assert answers.verdict(CLAIMS[name], shown) == said


def test_equal_time_is_in_updates(tmp_path: Path) -> None:
    trials, plan = made_up()
    bench = optimizations.Bench.__new__(optimizations.Bench)
    bench.plan, bench.setups, bench.trials = plan, plan.setups(), trials
    bench.args = type("Options", (), {"steps": 100})()
    assert bench.updates("mlx", "time", "sdpa") == round(100 * 350 / 150)
    assert bench.needless("mlx", "time", "baseline", 0)
    assert not bench.needless("mlx", "time", "rope", 1)  # it failed
    assert bench.needless("mlx", "steps", "length 64", 0)  # whose speed is not known
