"""train/run.py from end to end: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from specs import init_weights, spec_type
from specs.backend import BACKENDS, Arrays
from train import checkpoint, metrics
from train import run as command
from train.rundir import RunDir

ROOT = Path(__file__).parents[2]
TINY = ["--arch", "bdh", "--preset", "tiny", "--data", "text.txt", "--block-size", "16",
        "--batch-size", "4", "--log-every", "2", "--eval-every", "4", "--save-every", "4",
        "--warmup", "2", "--set", "dropout=0.1", "--set", "vocab_size=256"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    words = "the quick brown fox jumps over the lazy dog and runs away ".split()
    rng = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text(" ".join(rng.choice(words, 2000)), encoding="utf-8")
    return tmp_path


def train(*options: str, backend: str = "torch", name: str = "a") -> RunDir:
    assert command.main([*TINY, "--backend", backend, "--name", name, *options]) == 0
    return RunDir.open(name)


def resume(name: str, backend: str, *options: str) -> int:
    return command.main(["--resume", name, "--backend", backend, *options])


def final(run: RunDir) -> tuple[Arrays, Arrays]:
    state, (weights, optimizer), _ = checkpoint.load_last(run.path)
    return weights, {**optimizer, "tokens": np.array(state.tokens)}


def same(a: tuple[Arrays, Arrays], b: tuple[Arrays, Arrays]) -> bool:
    return all(np.array_equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_run_leaves(backend: str) -> None:
    run = train("--steps", "10", "--keep", "1", backend=backend)
    names = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    best = checkpoint.best_step(run.path)
    assert {"config.json", "tokenizer.json", "metrics.jsonl", "plots/loss.png",
            "corpus/corpus.safetensors", "step-00000010/model.safetensors",
            "step-00000010/optimizer.safetensors", "step-00000010/state.json"} <= names
    assert run.steps() == sorted({10, best})
    rows = metrics.read(run.metrics)
    logged = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logged] == [2, 4, 6, 8, 10]
    assert {"bpb", "perplexity", "lr", "grad_norm", "tokens_per_s", "mfu", "memory",
            "tokens"} <= logged[0].keys()
    assert logged[-1]["loss"] < logged[0]["loss"] and logged[-1]["tokens"] == 10 * 4 * 16
    evaluated = [row for row in rows if "val_loss" in row]
    assert [row["step"] for row in evaluated] == [4, 8, 10]
    assert {"val_bpb", "val_accuracy", "val_perplexity"} <= evaluated[0].keys()
    assert run.config["versions"][backend] and run.config["corpus"]["fingerprint"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [
    [], ["--optimizer", "muon", "--recompute"], ["--micro-batch", "3", "--schedule", "wsd"],
    ["--dtype", "bfloat16", "--seq-curriculum", "4:16"],
], ids=["plain", "muon-recompute", "micro-wsd", "bfloat16-curriculum"])
def test_resuming_is_bit_exact(backend: str, options: list[str]) -> None:
    unbroken = train("--steps", "10", *options, backend=backend, name="unbroken")
    broken = train("--steps", "10", *options, backend=backend, name="broken")
    shutil.rmtree(checkpoint.folder(broken.path, 10))
    assert broken.steps()[-1] == 8
    assert resume("broken", backend) == 0
    assert same(final(unbroken), final(broken))
    losses = [[(row["step"], row["loss"]) for row in metrics.read(run.metrics) if "loss" in row]
              for run in (unbroken, broken)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("first, second", [("mlx", "torch"), ("torch", "mlx")])
def test_a_run_goes_on_on_the_other_backend(first: str, second: str) -> None:
    unbroken = train("--steps", "12", backend=first, name="unbroken")
    train("--steps", "4", "--schedule", "constant", backend=first, name="broken")
    constant = train("--steps", "12", "--schedule", "constant", backend=first, name="constant")
    assert resume("broken", second, "--steps", "12") == 0
    for row, other in zip(*([r for r in metrics.read(run.metrics) if "loss" in r]
                            for run in (constant, RunDir.open("broken"))), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert other["backend"] == (first if other["step"] <= 4 else second)
    assert not same(final(unbroken), final(constant))


def test_both_backends_see_the_same_run() -> None:
    runs = [train("--steps", "6", backend=backend, name=backend) for backend in BACKENDS]
    a, b = ([row["loss"] for row in metrics.read(run.metrics) if "loss" in row] for run in runs)
    assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_that_is_not_finite_ends_the_run_with_its_weights(
        backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_type("bdh").preset("tiny", vocab_size=256)
    weights = init_weights(spec)
    weights["lm_head"][0, 0] = np.nan
    save(Path("nan.safetensors"), weights)
    code = command.main([*TINY, "--backend", backend, "--steps", "40", "--name", "a",
                         "--init", "nan.safetensors"])
    assert code == 1
    run = RunDir.open("a")
    assert run.steps() == [0]  # what is broken pushes out nothing
    assert "the last good checkpoint is that of step 0" in capsys.readouterr().err
    saved = run.weights()
    for name, array in weights.items():
        np.testing.assert_array_equal(saved[name], array)


def save(path: Path, weights: Arrays) -> None:
    from safetensors.numpy import save_file

    save_file(weights, path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_init_takes_an_official_state_dict(backend: str) -> None:
    spec = spec_type("bdh").preset("tiny", vocab_size=256)
    weights = init_weights(spec, seed=5)
    save(Path("official.safetensors"), {**weights, "attn.freqs": np.ones((1, 1, 1, 4), "f4")})
    run = train("--init", "official.safetensors", "--steps", "1", "--lr", "1e-30",
                "--weight-decay", "0", backend=backend)
    for name, array in run.weights().items():
        np.testing.assert_allclose(array, weights[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_chooses_the_micro_batch(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = train("--memory", "64GB", "--steps", "2", backend=backend)
    assert "micro-batches of 4 rows" in capsys.readouterr().err
    big = ["--batch-size", "256", "--block-size", "64", "--steps", "2"]
    process = start(*TINY, *big, "--backend", backend, "--name", "b", "--memory", "400MB")
    _, said = process.communicate(timeout=120)
    rows = int(said.partition("micro-batches of ")[2].split()[0])
    assert process.returncode == 0 and 1 <= rows < 256
    logged = metrics.read(Path("runs", "b", "metrics.jsonl"))[0]
    assert logged["memory"] < 1.1 * 400 * 2**20
    assert plain.steps()[-1] == 2


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, ROOT / "train" / "run.py", *options],
                            stderr=subprocess.PIPE, text=True, env={**os.environ})


def call(*options: str) -> int:
    process = start(*options)
    process.communicate(timeout=180)
    return process.returncode


def wait_for_step(name: str, step: int) -> None:
    for _ in range(600):
        rows = metrics.read(Path("runs", name, "metrics.jsonl"))
        if any(row["step"] >= step for row in rows):
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} never came to step {step}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_saves_and_says_how_to_go_on(backend: str) -> None:
    process = start(*TINY, "--backend", backend, "--steps", "100000", "--name", "a")
    wait_for_step("a", 4)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume a" in said and "Traceback" not in said
    step = RunDir.open("a").steps()[-1]
    assert f"saved at step {step}" in said
    assert resume("a", backend, "--steps", str(step + 2)) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_run_goes_on_bit_for_bit(backend: str) -> None:
    """In processes of their own: a process that also loaded MLX has another BLAS."""
    options = [*TINY, "--backend", backend, "--steps", "60", "--name"]
    assert call(*options, "unbroken") == 0
    process = start(*options, "killed")
    wait_for_step("killed", 6)
    process.kill()
    process.communicate()
    assert RunDir.open("killed").steps()[-1] < 60
    assert call("--resume", "killed", "--backend", backend) == 0
    assert same(final(RunDir.open("unbroken")), final(RunDir.open("killed")))


def test_two_processes_cannot_train_one_run() -> None:
    run = train("--steps", "4")
    with run.lock(), pytest.raises(command.UserError, match="another process"):
        resume("a", "torch", "--steps", "6")
    assert resume("a", "torch", "--steps", "6") == 0


def test_a_damaged_checkpoint_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    run = train("--steps", "8")
    file = checkpoint.folder(run.path, 8) / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert resume("a", "torch", "--steps", "12") == 0
    said = capsys.readouterr().err
    assert "step-00000008/optimizer.safetensors is damaged" in said and "at step 4" in said
    assert (run.path / "step-00000008.damaged").is_dir()


def test_going_on_behind_a_damaged_checkpoint_keeps_what_is_good() -> None:
    run = train("--steps", "12", "--keep", "9")
    (checkpoint.folder(run.path, 12) / "model.safetensors").write_bytes(b"")
    assert resume("a", "torch", "--keep", "1", "--save-every", "1", "--steps", "11") == 0
    assert run.steps()[-1] == 11 and run.weights()


def test_a_refused_resume_changes_nothing() -> None:
    run = train("--steps", "4")
    before = (run.path / "config.json").read_bytes(), run.metrics.read_bytes()
    with pytest.raises(command.UserError, match="more than --memory"):
        resume("a", "mlx", "--steps", "8", "--memory", "1MB")
    assert ((run.path / "config.json").read_bytes(), run.metrics.read_bytes()) == before
    assert resume("a", "torch", "--steps", "8") == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_dtype_on_resuming(backend: str) -> None:
    train("--steps", "2", "--dtype", "float16", "--set", "score_scale=sqrt", backend=backend)
    for steps, dtype in ((3, "float32"), (4, "float16")):
        assert resume("a", backend, "--steps", str(steps), "--dtype", dtype) == 0


def test_an_update_that_breaks_the_model_is_not_saved() -> None:
    run = train("--steps", "4")
    assert resume("a", "torch", "--steps", "40", "--lr", "1e30", "--save-every", "1") == 1
    assert run.steps()[-1] == 4
    assert resume("a", "torch", "--steps", "40", "--lr", "1e-3") == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_steps_are_the_same_steps(backend: str) -> None:
    options = [*TINY, "--steps", "4", "--micro-batch", "3", "--backend", backend, "--name"]
    assert call(*options, "plain") == 0 and call(*options, "compiled", "--compile") == 0
    a, b = ([row["loss"] for row in metrics.read(RunDir.open(name).metrics) if "loss" in row]
            for name in ("plain", "compiled"))
    assert len(a) == 2 and a == pytest.approx(b, rel=1e-5)


def test_compile_without_a_compiler_goes_on(monkeypatch: pytest.MonkeyPatch,
                                            capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path("cache").resolve()))
    process = start(*TINY, "--backend", "torch", "--steps", "2", "--name", "a", "--compile")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0 and "going on without --compile" in said


def test_a_run_of_no_steps_can_be_gone_on_with() -> None:
    run = train("--steps", "0")
    assert run.steps() == [0]
    assert resume("a", "torch", "--steps", "2") == 0


def test_a_lost_corpus_is_found_again_as_the_message_says(
        monkeypatch: pytest.MonkeyPatch) -> None:
    run = train("--steps", "2")
    shutil.rmtree(run.path / "corpus")
    assert resume("a", "torch", "--steps", "3") == 0  # from the cache
    shutil.rmtree("cache")
    with pytest.raises(command.UserError) as error:
        resume("a", "torch", "--steps", "4")
    recipe = str(error.value).partition("prepare it again with: ")[2]
    assert command.main(shlex.split(recipe)[2:]) == 0
    assert resume("a", "torch", "--steps", "4") == 0


def test_tokens_count_a_curriculum() -> None:
    run = train("--tokens", "2000", "--seq-curriculum", "4:16", "--save-every", "1000")
    state, _, _ = checkpoint.load_last(run.path)
    assert 2000 <= state.tokens < 2000 + 4 * 16


def test_the_best_model_is_kept() -> None:
    run = train("--steps", "12", "--save-every", "1000", "--keep", "1")
    losses = {row["step"]: row["val_loss"] for row in metrics.read(run.metrics)
              if "val_loss" in row}
    assert checkpoint.best_step(run.path) == min(losses, key=losses.__getitem__)


def test_half_a_metrics_line_is_forgotten() -> None:
    run = train("--steps", "4")
    with open(run.metrics, "a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')
    assert resume("a", "torch", "--steps", "6") == 0
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        json.loads(line)
