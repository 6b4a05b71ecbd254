"""A run of moe: its load is logged and drawn, its balance biases go from backend to backend."""

from __future__ import annotations

import numpy as np
import pytest

from specs.backend import BACKENDS
from tests.train.running import final, resume, same, train
from train import metrics

pytestmark = pytest.mark.usefixtures("here")
MOE = ["--arch", "moe", "--set", "balance=bias", "--set", "router_noise=0.1"]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("backend", BACKENDS)
def test_load_is_logged_and_drawn(backend: str) -> None:
    run = train(*MOE, "--steps", "5", "--micro-batch", "3", backend=backend)
    rows = [row for row in metrics.read(run.metrics) if "loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 5]
    for row in rows:
        for key in ("load.0", "load.1"):
            assert len(row[key]) == 4 and np.mean(row[key]) == pytest.approx(1, abs=1e-3)
    assert (run.plots / "experts.png").stat().st_size > 5000


@pytest.mark.usefixtures("pictures")
def test_other_architectures_have_no_load() -> None:
    run = train("--steps", "2")
    assert not [key for row in metrics.read(run.metrics) for key in row if key.startswith("load")]
    assert not (run.plots / "experts.png").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_run_ends_with_the_same_biases(backend: str) -> None:
    whole = train(*MOE, "--steps", "8", backend=backend, name="whole")
    half = train(*MOE, "--steps", "8", backend=backend, name="half", )
    for step in half.steps():
        if step > 4:
            (half.path / f"step-{step:08d}").rename(half.path / f"old-{step}")
    assert resume("half", backend) == 0
    assert same(final(whole), final(half))
    biases = final(whole)[0]["layers.0.mlp.balance_bias"]
    assert np.abs(biases).max() > 1e-3 and np.allclose(biases * 1e3, (biases * 1e3).round(), 1e-4)


def test_biases_cross_backends() -> None:
    runs = [train(*MOE, "--steps", "4", backend=backend, name=backend) for backend in BACKENDS]
    for run, other in zip(runs, reversed(BACKENDS), strict=True):
        assert resume(run.name, other, "--steps", "8") == 0
    (one, _), (two, _) = (final(run) for run in runs)
    for name, weight in one.items():
        assert np.abs(weight - two[name]).mean() < 1e-5, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_search_for_a_micro_batch_moves_no_bias(backend: str) -> None:
    plain, searched = (train(*MOE, "--steps", "2", *more, backend=backend, name=name)
                       for name, more in (("plain", ()), ("searched", ("--memory", "64GB"))))
    np.testing.assert_array_equal(*(final(run)[0]["layers.0.mlp.balance_bias"]
                                    for run in (plain, searched)))
