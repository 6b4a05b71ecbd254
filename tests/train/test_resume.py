"""A run that was stopped, killed or damaged goes on, and nothing is lost."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from specs import architectures, init_weights, spec_type
from specs.backend import BACKENDS
from tests.train.running import TINY, final, resume, same, save, started, train, wait_for_step
from train import checkpoint, metrics, plots
from train import run as command
from train.loop import Loop
from train.rundir import RunDir

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [
    [], ["--optimizer", "muon", "--recompute"], ["--micro-batch", "3", "--schedule", "wsd"],
    ["--dtype", "bfloat16", "--seq-curriculum", "4:16"], ["--arch", "gpt"],
    ["--arch", "gpt", "--optimizer", "muon", "--recompute", "--micro-batch", "3"],
], ids=["plain", "muon-recompute", "micro-wsd", "bfloat16-curriculum", "gpt",
        "gpt-muon-recompute-micro"])
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


@pytest.mark.parametrize("arch", architectures())
@pytest.mark.parametrize("first, second", [("mlx", "torch"), ("torch", "mlx")])
def test_a_run_goes_on_on_the_other_backend(first: str, second: str, arch: str) -> None:
    unbroken = train("--steps", "12", "--arch", arch, backend=first, name="unbroken")
    constantly = ["--arch", arch, "--schedule", "constant"]
    train("--steps", "4", *constantly, backend=first, name="broken")
    constant = train("--steps", "12", *constantly, backend=first, name="constant")
    assert resume("broken", second, "--steps", "12") == 0
    for row, other in zip(*([r for r in metrics.read(run.metrics) if "loss" in r]
                            for run in (constant, RunDir.open("broken"))), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert other["backend"] == (first if other["step"] <= 4 else second)
    assert not same(final(unbroken), final(constant))


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_saves_and_says_how_to_go_on(backend: str) -> None:
    with started(*TINY, "--backend", backend, "--steps", "100000", "--name", "a") as process:
        wait_for_step("a", 4)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume a" in said and "Traceback" not in said
    step = RunDir.open("a").steps()[-1]
    assert f"saved at step {step}" in said
    assert resume("a", backend, "--steps", str(step + 2)) == 0


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
    assert (run.path / "step-00000008.aside").is_dir()


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


def test_compile_without_a_compiler_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path("cache").resolve()))
    with started(*TINY, "--backend", "torch", "--steps", "2", "--name", "a",
                 "--compile") as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0 and "going on without --compile" in said


def test_a_run_of_no_steps_can_be_gone_on_with() -> None:
    run = train("--steps", "0")
    assert run.steps() == [0]
    assert resume("a", "torch", "--steps", "2") == 0


def test_a_damaged_corpus_is_made_again_as_the_message_says() -> None:
    text = Path("text.txt")
    text.write_text(text.read_text(encoding="utf-8")[:500], encoding="utf-8")
    run = train("--steps", "2")
    shutil.rmtree(run.path / "corpus")
    assert resume("a", "torch", "--steps", "3") == 0  # from the cache
    kept, = Path("cache").rglob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(command.UserError) as error:
        resume("a", "torch", "--steps", "4")
    recipe = str(error.value).partition("prepare it again with: ")[2]
    assert command.main(shlex.split(recipe)[2:]) == 0
    assert resume("a", "torch", "--steps", "4") == 0


def test_half_a_metrics_line_is_forgotten() -> None:
    run = train("--steps", "4")
    with open(run.metrics, "a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')
    assert resume("a", "torch", "--steps", "6") == 0
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        json.loads(line)


def test_the_micro_batch_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other micro-batches would give the last bits of the sums other values."""
    found = iter([3, 2])
    monkeypatch.setattr(command, "micro_batch_for", lambda *args: next(found))
    run = train("--memory", "1GB", "--steps", "1")
    for more, rows in ([], 3), (["--memory", "2GB"], 2), (["--micro-batch", "1"], 1):
        assert resume("a", "torch", "--steps", str(run.steps()[-1] + 1), *more) == 0
        assert run.settings.micro_batch == rows


@pytest.mark.parametrize("device", [[], ["--device", "cpu"]], ids=["any-device", "cpu"])
def test_what_was_interrupted_goes_on_where_it_ran(
        device: list[str], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    def stop(loop: Loop) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "train", stop)
    assert command.main([*TINY, "--backend", "torch", *device, "--name", "a"]) == 130
    said = capsys.readouterr().err.splitlines()[-1].split()
    assert said[said.index("--resume"):] == ["--resume", "a", "--backend", "torch", *device]


def test_ctrl_c_while_it_is_drawn_leaves_a_run_done(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(run: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "draw", stop)
    train("--steps", "1")
    assert "done: 1 steps" in capsys.readouterr().err
