"""The race of small GPTs, at sizes that take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs.backend import BACKENDS
from tests.bench.test_benches import bench, result


@pytest.mark.needs(*BACKENDS)
def test_speedrun(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 80)
    said = bench(tmp_path, "speedrun", "--data", "text.txt", "--steps", "2", "--times", "1",
                 "--who", "mlx")
    found = result(tmp_path, "speedrun")["found"]
    assert list(found) == ["recipe, torch", "ours, mlx", "1 × its time, mlx"]
    for who, figures in found.items():
        assert figures["seconds"] > 0 and 1 < figures["loss"] < 7, who
        assert f"{figures['loss']:.4f}" in said
    assert "shakespeare" in found["ours, mlx"]["options"]
