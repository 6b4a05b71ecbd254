"""Full disks, foreign files, two processes, clocks and too little memory: each ends with a line
that says what happened and a run that goes on from its last good step."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from specs.backend import BACKENDS
from tests.train.running import ROOT, TINY, end, resume, started, train, wait_for_step, whole
from train import checkpoint, metrics
from train import run as command
from train.rundir import RunDir

pytestmark = pytest.mark.usefixtures("here")
NEW = [*TINY, "--steps", "12", "--name", "a"]


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """The system lets no file grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# A full disk

@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", ["config.json", "metrics.jsonl", "step-00000012"])
def test_no_room_to_go_on(what: str, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("--steps", "8", "--log-every", "1", backend=backend)
    before = (run.path / "config.json").read_bytes()
    room = {"config.json": 500, "metrics.jsonl": run.metrics.stat().st_size + 100,
            "step-00000012": 50_000}[what]
    with longest_file(room):
        code, said = end("--resume", "a", "--backend", backend, "--steps", "12", capsys=capsys)
    assert code == 2
    assert said.splitlines()[-1].startswith(f"error: no room to write runs/a/{what}")
    assert whole(run)[-1] == 8
    if what == "config.json":
        assert (run.path / "config.json").read_bytes() == before
    assert resume("a", backend, "--steps", "12") == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_room_for_a_new_run_leaves_none(backend: str,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    with longest_file(50_000):
        code, said = end(*NEW, "--backend", backend, capsys=capsys)
    assert code == 2
    assert said.splitlines()[-1].startswith("error: no room to write runs/a") and "again" in said
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_disk_that_fills_up_and_grows(backend: str) -> None:
    """The runs on a file system of 1 MB, made larger when that is full."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"]).returncode:
        pytest.skip("no file system may be mounted here")
    python = f"{sys.executable} {ROOT / 'train' / 'run.py'} --backend {backend}"
    script = f"""mkdir runs && mount -t tmpfs -o size=1m none runs || exit 99
        {python} {' '.join(NEW)} --save-every 1 --keep 9; echo code $?; cp -r runs/a full
        mount -o remount,size=9m runs
        {python} --resume a; echo code $?; cp -r runs/a grown"""
    said = subprocess.run([*namespace, "sh", "-c", script], capture_output=True, text=True,
                          timeout=120)
    assert "code 2" in said.stdout and "code 0" in said.stdout and "Traceback" not in said.stderr
    last = whole(RunDir(Path("full")))[-1]
    assert f"go on from step {last} with:" in said.stderr
    assert f"going on at step {last}," in said.stderr
    assert 0 < last < 12 and whole(RunDir(Path("grown")))[-1] == 12


@pytest.mark.needs("torch")
@pytest.mark.usefixtures("pictures")
def test_no_room_for_a_plot(monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture[str]) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("train.plots.write_bytes", full)
    code, said = end(*NEW, "--backend", "torch", capsys=capsys)
    assert code == 2 and "error: no room to write runs/a/plots/loss.png" in said
    assert whole(RunDir.open("a"))[-1] == 12


# Checkpoints that are not this run's

@pytest.mark.parametrize("options", [["--seed", "1"], ["--set", "n_embd=16"]],
                         ids=["same-shape", "other-shape"])
def test_a_checkpoint_of_another_run_is_set_aside(options: list[str],
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    run, other = train("--steps", "4"), train("--steps", "8", *options, name="b")
    shutil.copytree(checkpoint.folder(other.path, 8), checkpoint.folder(run.path, 8))
    assert resume("a", "torch", "--steps", "12") == 0
    said = capsys.readouterr().err
    assert "step-00000008 belongs to another run; going back" in said
    assert "going on at step 4" in said and (run.path / "step-00000008.aside").is_dir()


def test_a_checkpoint_of_a_newer_version_is_set_aside(capsys: pytest.CaptureFixture[str]) -> None:
    run = train("--steps", "8")
    file = checkpoint.folder(run.path, 8) / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
    assert resume("a", "torch", "--steps", "12") == 0
    said = capsys.readouterr().err
    assert "written by another version" in said and "going on at step 4" in said
    assert (run.path / "step-00000008.aside").is_dir()


@pytest.mark.needs("torch")
@pytest.mark.parametrize("key", ["arch", "preset", "spec", "settings", "corpus", "fingerprint"])
def test_a_config_that_lacks_something_says_so(key: str,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    file = train("--steps", "1").path / "config.json"
    file.write_text(file.read_text().replace(f'"{key}": ', f'"{key.upper()}": '))
    code, said = end("--resume", "a", "--backend", "torch", "--steps", "2", capsys=capsys)
    message = "cannot be found" if key == "fingerprint" else f"damaged: it lacks {key!r}"
    assert code == 2 and message in said.splitlines()[-1]


@pytest.mark.needs("torch")
@pytest.mark.parametrize("part, value, message", [
    ("spec", [1], "damaged: it lacks 'spec'"), ("arch", 3, "damaged: it lacks 'arch'"),
    ("settings", {"lr": "fast"}, "lr = 'fast' must be a number")], ids=["list", "number", "word"])
def test_a_config_with_wrong_values_says_so(part: str, value: object, message: str,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    file = train("--steps", "1").path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), part: value}))
    code, said = end("--resume", "a", "--backend", "torch", "--steps", "2", capsys=capsys)
    assert code == 2 and message in said.splitlines()[-1]


# Two processes

@pytest.mark.parametrize("backend", BACKENDS)
def test_training_twice_is_refused_reading_is_not(backend: str) -> None:
    """While one process saves and prunes without a pause."""
    with started(*TINY, "--backend", backend, "--steps", "100000", "--name", "a",
                 "--save-every", "1", "--keep", "1", "--eval-every", "100000"):
        wait_for_step("a", 2)
        with started("--resume", "a", "--backend", backend) as second:
            generate = subprocess.Popen(
                [sys.executable, ROOT / "generate" / "run.py", "--run", "a", "--backend", backend,
                 "--max-tokens", "5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(200):
                assert RunDir.open("a").weights()
            _, refused = second.communicate(timeout=60)
            _, said = generate.communicate(timeout=60)
        assert second.returncode == 2 and generate.returncode == 0, said
        assert refused.splitlines()[-1] == ("error: another process is training a: wait for it, or "
                                            "stop it first")
    assert RunDir.open("a").weights()


# The clock, and memory

def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    jumps = iter([-1e8, 1e8, -3e8, 2e9] * 100_000)
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + next(jumps))
    rows = metrics.read(train("--minutes", "0.01").metrics)
    assert all(1 > later["elapsed"] - sooner["elapsed"] >= 0
               for sooner, later in zip(rows, rows[1:], strict=False))
    assert all(row["tokens_per_s"] > 0 for row in rows if "loss" in row)
    assert "ETA 0:00" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.needs("torch")
def test_too_little_memory_for_a_step() -> None:
    most = 2 * 2**30
    process = subprocess.run(
        [sys.executable, ROOT / "train" / "run.py", *NEW, "--backend", "torch", "--batch-size",
         "1024", "--block-size", "600"], stderr=subprocess.PIPE, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, most)))
    said = process.stderr.splitlines()[-1]
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert said.startswith("error: not enough memory (") and "--micro-batch" in said
    assert "go on from step 0 with: python" in said and whole(RunDir.open("a")) == [0]


@pytest.mark.needs("torch")
@pytest.mark.parametrize("error", [
    RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than the"),
    RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIO"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), MemoryError(),
], ids=["metal", "metal-late", "cuda", "mps", "python"])
def test_memory_by_any_name(error: Exception, monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture[str]) -> None:
    def step(*args: object) -> None:
        raise error

    monkeypatch.setattr("torch_models.trainer.Trainer.step", step)
    code, said = end(*NEW, "--backend", "torch", capsys=capsys)
    assert code == 2 and "not enough memory (" in said and "--memory" in said


def test_another_error_is_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*args: object) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr("torch_models.trainer.Trainer.step", step)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        command.main([*NEW, "--backend", "torch"])
