"""Every experiment from end to end at the smallest sizes, and one that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specs import UserError, architectures
from specs.backend import BACKENDS, available_backends, load_backend
from tests.train.running import ROOT, train, wait_for_step
from train import experiment, experiments, metrics
from train.rundir import RUNS, RunDir
from train.study import bdh, runner, timing, worker
from train.study import plan as planning
from train.study.setup import Setup

pytestmark = pytest.mark.usefixtures("here")
COMMAND = ROOT / "train" / "experiment.py"
SMALLEST = ["architectures", "--only", "gpt", "--lr", "0.003", "--steps", "8", "--seeds", "1",
            "--data", "text.txt"]
SPEEDS = ("tokens_per_s", "windows_per_s", "seconds_tokens", "seconds_time", "memory", "decoding")


def perform(self: runner.Runner, arm: planning.Arm) -> dict[str, Any]:
    """In this process."""
    return json.loads(json.dumps(worker.perform(self.task(arm))))


def tiny(setup: Setup) -> Setup:
    kept = {"block_size": 16 * setup.fields["block_size"] // 256 or 8}
    return replace(setup, preset="tiny", fields=kept,
                   settings={**setup.settings, "batch_size": 2, "micro_batch": 1})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments with the smallest models, in this process."""
    true = experiments.load

    def load(name: str) -> planning.Experiment:
        found = true(name)
        return replace(found, contexts=(4,) if found.contexts else (), setups=lambda full, size: {
            each: tiny(setup) for each, setup in found.setups(full, size).items()})

    @contextmanager
    def elsewhere(*case: Any) -> Iterator[timing.Work]:
        backend, spec, settings, make = (*case, timing.stepper)[:4]
        yield make(backend, spec, settings)

    monkeypatch.setattr(experiments, "load", load)
    monkeypatch.setattr(runner.Runner, "ask", perform)
    for module in (timing, bdh):
        monkeypatch.setattr(module, "elsewhere", elsewhere)
    monkeypatch.setattr(planning, "HELD_OUT", 64)
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "ROUNDS", (2, 2))
    monkeypatch.setattr(worker, "HELD_OUT", 64)
    monkeypatch.setattr("train.files.flush", lambda _: None)
    monkeypatch.setattr("train.plots.draw", lambda _: [])
    for backend in BACKENDS:
        monkeypatch.setattr(f"{backend}_models.backend.Backend.matmul_rate", lambda *_: 1e9)


def results(name: str) -> dict[str, Any]:
    return json.loads((RUNS / name / "results.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment(name: str, backend: str, capsys: pytest.CaptureFixture[str],
                          monkeypatch: pytest.MonkeyPatch) -> None:
    some = {"batch-vs-seqlen": ["--only", "16x64", "2x256"],
            "optimizers": ["--only", "gpt-adamw", "gpt-muon"],
            "toeplitz": ["--only", "mean_proj-raw", "nomean_proj-raw"],
            "bdh-improvements": ["--only", "plain", "original", "muon"],
            "questions": ["--only", "original", "hyena", "long-plain", "long-fused"]}.get(name, [])
    call = [name, "--backend", backend, "--steps", "2", "--seeds", "1", "--data", "text.txt",
            *some]
    if name != "batch-vs-seqlen":
        call += ["--lr", "0.01", *(["0.02"] if name == "optimizers" else [])]
    assert experiment.main(call) == 0
    shown = capsys.readouterr()
    found = results(f"{name}-{backend}")
    setups = [row["setup"] for row in found["table"]]
    sizes = {"architectures": len(architectures()), "mla-long": 4}
    assert len(set(setups)) == (2 if some else sizes.get(name, 3))
    assert len(setups) == len(set(setups)) * (3 if name == "batch-vs-seqlen" else 1)
    for row in found["table"]:
        assert row["setup"] in shown.out and row["lr"] > 0
        assert 4 < row["loss_tokens"]["middle"] < 8 and row["memory"] > 0
    measures = [arm for arm in found["arms"].values() if arm["kind"] == "measure"]
    both = len(available_backends()) == 2
    expected = {"architectures": len(architectures()) - 1, "bdh-improvements": 6 + both,
                "mla-long": 0, "moe-baseline": 2, "questions": 2}
    assert len(measures) == expected.get(name, 1)
    assert not any("error" in arm for arm in found["arms"].values())
    trainings = sum("loss" in arm for arm in found["arms"].values())
    assert shown.err.count("tokens/s") >= trainings > 0
    assert found["answer"].replace("**", "")[:40] in shown.out
    page = (RUNS / f"{name}-{backend}" / f"{name}.md").read_text(encoding="utf-8")
    claims = {"bdh-improvements": 7 + both, "questions": 3, "toeplitz": 3}.get(name, 0)
    assert sum(line.startswith("| ") for line in page.splitlines()) == 2 + len(setups) + claims
    for picture in page.split("](")[1:]:
        assert (RUNS / f"{name}-{backend}" / picture.partition(")")[0]).stat().st_size > 10_000
    run = next(key for key, arm in found["arms"].items() if arm["kind"] == "tokens")
    assert RunDir.open(f"{name}-{backend}/{run}").name == f"{name}-{backend}/{run}"

    def never(self: runner.Runner, arm: planning.Arm) -> dict[str, Any]:
        raise AssertionError(f"{arm.name} was done")

    monkeypatch.setattr(runner.Runner, "ask", never)
    assert experiment.main(call) == 0
    assert results(f"{name}-{backend}") == found
    (RUNS / f"{name}-{backend}" / "results.json").unlink()
    with pytest.raises(UserError, match="holds trainings, and no results.json"):
        experiment.main(call)


@pytest.mark.usefixtures("quick")
@pytest.mark.needs("torch")
def test_what_is_measured_and_not_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["questions", "--backend", "torch", "--data", "text.txt",
                            "--only", "long-plain", "long-fused"]) == 0
    assert "fused attention" in capsys.readouterr().out


def test_killed_and_called_again() -> None:
    """In processes of their own: in one that holds both backends they share a BLAS."""
    backend = available_backends()[0]
    def call(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, COMMAND, *SMALLEST, "--backend", backend, "--name", name],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    process = call("killed")
    wait_for_step("killed/gpt-lr0.003-s0", 1)
    process.kill()
    process.communicate()
    assert list(results("killed")["arms"]) == ["gpt-probe"]
    _, again = call("killed").communicate(timeout=300)
    assert "2/2 gpt-lr0.003-s0: 8 steps" in again and "gpt-probe" not in again, again
    rows = metrics.read(RUNS / "killed" / "gpt-lr0.003-s0" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))

    call("unbroken").communicate(timeout=300)
    broken, whole = (without_speeds(results(name)["table"]) for name in ("killed", "unbroken"))
    assert broken == whole
    one, other = (RunDir.open(f"{name}/gpt-lr0.003-s0").weights()
                  for name in ("killed", "unbroken"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def without_speeds(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in SPEEDS} for row in table]


@pytest.mark.needs("torch")
def test_stopped_by_ctrl_c() -> None:
    process = subprocess.Popen([sys.executable, COMMAND, *SMALLEST, "--steps", "200", "--backend",
                                "torch"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True)
    wait_for_step("architectures-torch/gpt-lr0.003-s0", 1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("stopped; the same command goes on with it\n")
    run = RunDir.open("architectures-torch/gpt-lr0.003-s0")
    assert run.weights() and not list(run.path.rglob("*.tmp"))
    with run.lock():
        pass


@pytest.mark.usefixtures("quick")
@pytest.mark.needs("torch")
def test_what_fails_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    def some(self: runner.Runner, arm: planning.Arm) -> dict[str, Any]:
        if arm.setup == "dense-total" and arm.kind != "probe":
            return {"error": "not enough memory (8 GB)"}
        return perform(self, arm)

    call = ["moe-baseline", "--backend", "torch", "--steps", "2", "--seeds", "1", "--data",
            "text.txt"]
    monkeypatch.setattr(runner.Runner, "ask", some)
    assert experiment.main(call) == 0
    assert "dense-total-lr0.01-s0: not enough memory (8 GB)" in capsys.readouterr().err
    page = (RUNS / "moe-baseline-torch" / "moe-baseline.md").read_text(encoding="utf-8")
    assert page.count("not enough memory (8 GB)") == 1
    monkeypatch.setattr(runner.Runner, "ask", perform)
    assert experiment.main(call) == 0
    assert all("error" not in arm for arm in results("moe-baseline-torch")["arms"].values())
    with pytest.raises(UserError, match="made with another steps: choose another --name"):
        experiment.main([*call[:4], "3", *call[5:]])


@pytest.mark.usefixtures("quick")
@pytest.mark.needs("torch")
def test_a_tokenizer_is_learnt_once_and_used_by_all() -> None:
    call = ["moe-baseline", "--backend", "torch", "--steps", "1", "--seeds", "2", "--only",
            "dense-active", "--data", "text.txt", "--tokenizer", "bpe:280"]
    assert experiment.main(call) == 0
    runs = [RunDir.open(f"moe-baseline-torch/dense-active-lr0.01-s{seed}") for seed in (0, 1)]
    assert {run.spec.vocab_size for run in runs} == {280}
    assert {run.config["corpus"]["fingerprint"] for run in runs} == {
        results("moe-baseline-torch")["about"]["fingerprint"]}
    assert all(run.settings.tokenizer.endswith("tokenizer.json") for run in runs)


@pytest.mark.needs("torch")
def test_windows_that_are_longer_than_the_text() -> None:
    run = train("--steps", "1")
    with pytest.raises(UserError, match="the training part of text.txt has"):
        worker.read(load_backend("torch", "cpu"), run, [16, 1_000_000])


@pytest.mark.needs("torch")
def test_a_worker_that_dies(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    script = here / "dies.py"
    monkeypatch.setattr(runner, "WORKER", script)
    call = [*SMALLEST, "--backend", "torch", "--name", "dead"]
    for text, error in (("raise SystemExit('error: no such thing')", "error: no such thing"),
                        ("import os; os.kill(os.getpid(), 9)", "it was killed")):
        script.write_text(text)
        with pytest.raises(UserError, match=f"no training came to its end: {error}"):
            experiment.main(call)
        assert results("dead")["arms"]["gpt-probe"]["error"] == error


@pytest.mark.parametrize("arguments, message", [
    ([], "which experiment"), (["optimisers"], "did you mean 'optimizers'"),
    (["optimizers", "--only", "gpt"], "no setup 'gpt'"),
    (["optimizers", "--steps", "0"], "--steps 0 must be positive"),
    (["optimizers", "--steps", "1", "--minutes", "1"], "both bound"),
    (["optimizers", "--lr", "-1"], "--lr must be positive"),
    (["optimizers", "--lr", "inf"], "--lr must be positive"),
    (["optimizers", "--name", "a/b"], "--name 'a/b' must be letters"),
    (["optimizers", "--data", "nowhere.txt"], "nowhere.txt"),
], ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "")
def test_bad_input(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        experiment.main(arguments)
    assert not RUNS.exists()


@pytest.mark.parametrize("content", ["half", "[1]", '{"about": 3}', '{"about": {}}'])
def test_foreign_results_are_left_alone(content: str) -> None:
    file = RUNS / "mine" / "results.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(UserError, match="holds something else than these results"):
        experiment.main([*SMALLEST, "--name", "mine"])
    assert file.read_text() == content
    file.with_name("config.json").write_text("{}")
    with pytest.raises(UserError, match="no run's name"):
        experiment.main([*SMALLEST, "--name", "mine"])


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in experiments.names())
    assert experiment.main(["architectures", "--list", "--data", "text.txt"]) == 0
    said = capsys.readouterr().out
    assert all(f"--arch {arch} " in said for arch in architectures())
    assert "tokens: bdh-lr0.001-s0 200 steps, bdh-lr0.003-s0 200 steps" in said
    assert not RUNS.exists()
