"""A tiny run, trained in this process or in one of its own, for the tests of train/run.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from specs import main_exit
from specs.backend import Arrays
from train import checkpoint, metrics
from train import run as command
from train.rundir import RunDir

ROOT = Path(__file__).parents[2]
TINY = ["--arch", "bdh", "--preset", "tiny", "--data", "text.txt", "--block-size", "16",
        "--batch-size", "4", "--log-every", "2", "--eval-every", "4", "--save-every", "4",
        "--warmup", "2", "--set", "dropout=0.1", "--set", "vocab_size=256"]


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


def save(path: Path, weights: Arrays) -> None:
    save_file(weights, path)


@contextmanager
def started(*options: str) -> Iterator[subprocess.Popen[str]]:
    """train/run.py in a process of its own, which does not outlive the block."""
    with subprocess.Popen([sys.executable, ROOT / "train" / "run.py", *options],
                          stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        try:
            yield process
        finally:
            process.kill()


def call(*options: str) -> int:
    with started(*options) as process:
        process.communicate(timeout=180)
    return process.returncode


def wait_for_step(name: str, step: int) -> None:
    for _ in range(600):
        rows = metrics.read(Path("runs", name, "metrics.jsonl"))
        if any(row["step"] >= step for row in rows):
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} never came to step {step}")


def end(*options: str, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """Exit code and stderr of train/run.py in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main_exit(lambda: command.main(list(options)))
    return stop.value.code, capsys.readouterr().err


def whole(run: RunDir) -> list[int]:
    """Steps of the checkpoints, each of them whole, with nothing half-written around them."""
    for step in run.steps():
        checkpoint.load(checkpoint.folder(run.path, step))
    text = run.metrics.read_text(encoding="utf-8") if run.metrics.exists() else ""
    for line in text.splitlines():
        json.loads(line)
    assert not list(run.path.rglob("*.tmp"))
    return run.steps()
