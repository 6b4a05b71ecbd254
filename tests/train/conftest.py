"""A folder of its own, with a small text in it, for a test that trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    words = "the quick brown fox jumps over the lazy dog and runs away ".split()
    rng = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text(" ".join(rng.choice(words, 2000)), encoding="utf-8")
    return tmp_path
