"""A folder of its own, with a small text in it, for a test that trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from specs.backend import available_backends
from train import plots

DRAW = plots.draw


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plots, "draw", lambda run: [])  # it takes longer than the training
    for name in available_backends():
        monkeypatch.setattr(f"{name}_models.backend.best_rate", lambda work, wait, amount: 1e11)
    words = "the quick brown fox jumps over the lazy dog and runs away ".split()
    rng = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text(" ".join(rng.choice(words, 2000)), encoding="utf-8")
    return tmp_path


@pytest.fixture
def pictures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends with its pictures, as it does outside of tests."""
    monkeypatch.setattr(plots, "draw", DRAW)
