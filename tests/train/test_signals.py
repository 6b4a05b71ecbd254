"""Ctrl-C, SIGTERM and a closed terminal at any moment: the run is saved, or as it was before."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from specs.backend import BACKENDS
from tests.train.running import ROOT, TINY, end, train, wait_for_step, whole
from train import checkpoint, loop, metrics
from train import run as command
from train.loop import Loop
from train.rundir import RunDir

pytestmark = pytest.mark.usefixtures("here")
NEW = [*TINY, "--steps", "12", "--name", "a"]


def send(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *numbers: int) -> None:
    """These signals come when `owner.name` is called for the first time."""
    function = getattr(owner, name)
    coming = list(numbers)

    def called(*args: Any, **kwargs: Any) -> Any:
        while coming:
            os.kill(os.getpid(), coming.pop())
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name", ["prepare", "store"])
def test_ctrl_c_before_there_is_a_run(name: str, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    send(monkeypatch, command, name, signal.SIGINT)
    code, said = end(*NEW, "--backend", "torch", capsys=capsys)
    assert code == 130 and said.splitlines()[-1] == "interrupted"
    assert not list(Path().glob("runs/*"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name, saved, number", [
    ("batches", 1, "SIGINT"), ("log", 3, "SIGINT"), ("evaluate", 5, "SIGINT"),
    ("save", 5, "SIGINT"), ("evaluate", 5, "SIGTERM"), ("evaluate", 5, "SIGHUP")])
def test_a_signal_saves_and_says_how_to_go_on(name: str, saved: int, number: str, backend: str,
                                              monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    send(monkeypatch, Loop, name, signal.Signals[number])
    code, said = end(*NEW, "--backend", backend, capsys=capsys)
    assert code == 130 and "stopping after this step" in said
    assert said.splitlines()[-1].startswith(f"saved at step {saved}; go on with: python")
    assert whole(RunDir.open("a"))[-1] == saved


@pytest.mark.needs("torch")
def test_a_signal_in_the_last_step_changes_nothing(monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    send(monkeypatch, loop, "learning_rate", signal.SIGINT)
    code, said = end(*TINY, "--steps", "1", "--name", "a", "--backend", "torch", capsys=capsys)
    assert code == 0 and "stopping after this step" in said
    run = RunDir.open("a")
    assert whole(run)[-1] == 1 and metrics.read(run.metrics)[-1]["val_loss"] > 0


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name, saved", [("save_arrays", 4), ("write_json", 4), ("prune", 8)])
def test_ctrl_c_twice_takes_half_a_checkpoint_back(name: str, saved: int,
                                                   monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    run = train("--steps", "4")
    send(monkeypatch, checkpoint, name, signal.SIGINT, signal.SIGINT)
    code, said = end("--resume", "a", "--backend", "torch", "--steps", "12", capsys=capsys)
    left = "" if saved == 8 else "left at step 8, "
    assert code == 130
    assert said.splitlines()[-1].startswith(f"{left}saved at step {saved}; go on with: python")
    assert whole(run)[-1] == saved


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_terminal_saves(backend: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, os, sys, termios;"
         "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])",
         sys.executable, str(ROOT / "train" / "run.py"), *TINY, "--backend", backend, "--steps",
         "100000", "--name", "a", "--save-every", "100000"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        while not Path("runs/a/metrics.jsonl").exists():
            os.read(ours, 4096)
        wait_for_step("a", 4)
        os.close(ours)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    run = RunDir.open("a")
    assert whole(run)[-1] >= metrics.read(run.metrics)[-1]["step"] >= 4
