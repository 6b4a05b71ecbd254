"""Budgets are what the mathematics says they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from parity.budget import FACTOR, NUDGES, ROUNDOFF, distance, judge, nudged, over

WEIGHTS = {"w": np.array([1.0, -2.0, 4.0]), "count": np.array([3])}


def test_the_factor_is_what_the_project_states() -> None:
    assert (FACTOR, NUDGES, ROUNDOFF) == (8, 6, 2.0**-24)


def test_nudges_go_both_ways_and_leave_integers() -> None:
    found = list(nudged(WEIGHTS, seed=0))
    assert len(found) == 2 * NUDGES
    for up, down in zip(found[::2], found[1::2], strict=True):
        np.testing.assert_allclose(np.abs(up["w"] / WEIGHTS["w"] - 1), FACTOR * ROUNDOFF, rtol=1e-6)
        np.testing.assert_allclose(up["w"] + down["w"], 2 * WEIGHTS["w"], rtol=1e-15)
        assert up["count"] == down["count"] == 3
    assert len({tuple(weights["w"]) for weights in found}) > 2


def test_budget_of_a_smooth_figure_is_its_sensitivity() -> None:
    """A product moves by at most the share of its factors; its own rounding comes on top."""
    verdict = judge(lambda start: {"y": 1000 * start["w"][:1]}, WEIGHTS, seed=0)
    assert verdict.truth["y"] == 1000
    assert verdict.budget["y"] == pytest.approx(2 * FACTOR * ROUNDOFF * 1000)


def test_budget_of_an_ill_conditioned_figure_is_wide() -> None:
    """A difference of nearly equal numbers."""
    start = {"w": np.array([1.0, 1.001])}
    verdict = judge(lambda start: {"y": start["w"][1:] - start["w"][:1]}, start, seed=0)
    assert verdict.budget["y"] / 1e-3 > 1000 * FACTOR * ROUNDOFF


def test_budget_of_a_constant_is_its_own_rounding() -> None:
    verdict = judge(lambda start: {"y": np.array([3.0, 4.0])}, WEIGHTS, seed=0)
    assert verdict.budget["y"] == pytest.approx(FACTOR * ROUNDOFF * 5)


def test_budget_covers_a_flip_that_rounding_may_cause() -> None:
    """A step whose edge lies one unit of roundoff away: every pair of nudges crosses it."""
    edge = 1 + ROUNDOFF
    verdict = judge(lambda start: {"y": np.array([start["w"][0] > edge], float)}, WEIGHTS, seed=0)
    assert verdict.budget["y"] >= 1


@pytest.mark.parametrize(("found", "error"), [
    pytest.param(np.array([3.0, 4.0]), 5.0, id="difference"),
    pytest.param(np.array([np.nan, 0]), math.inf, id="nan"),
    pytest.param(np.array([0.0, np.inf]), math.inf, id="infinite"),
    pytest.param(np.zeros((2, 1)), math.inf, id="shape"),
    pytest.param(None, math.inf, id="missing"),
])
def test_distance(found: np.ndarray | None, error: float) -> None:
    assert distance(found, np.zeros(2)) == error


@pytest.mark.parametrize(("error", "budget", "ratio"), [
    (0.0, 0.0, 0.0), (1e-30, 0.0, math.inf), (2.0, 4.0, 0.5), (math.inf, 1.0, math.inf),
    (1.0, math.nan, math.inf), (0.0, math.nan, 0.0),
])
def test_over(error: float, budget: float, ratio: float) -> None:
    assert over(error, budget) == ratio
