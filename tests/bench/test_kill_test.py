"""A short form of the kill test: nothing is lost, on each backend and with both in turn."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from specs.backend import BACKENDS

COMMAND = Path(__file__).parents[2] / "bench" / "kill_test.py"


@pytest.mark.parametrize("backend", [
    *BACKENDS, pytest.param("both", marks=[pytest.mark.needs(name) for name in BACKENDS])])
def test_killed_runs_lose_nothing(backend, tmp_path):
    done = subprocess.run(
        [sys.executable, COMMAND, "--kills", "2", "--seed", "1", "--backend", backend],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "DIPTYCH_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "2 kills" in done.stdout
    assert ("the same bits" if backend != "both" else "eight times") in done.stdout
