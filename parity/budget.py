"""How wrong may a right float32 result be? Budgets from the sensitivity of a float64 referee.

Whatever order a float32 implementation computes in, its rounding acts like a small change of what
it was given: it returns the exact result of slightly other weights (backward error analysis). So
a figure's budget is how far the referee moves when everything it starts from is nudged by a few
units of float32 roundoff. A deep or ill-conditioned model gets the room that its own mathematics
needs, a shallow one gets none, and a wrong convention anywhere stands out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from specs.backend import Arrays
from specs.init import philox

ROUNDOFF = 2.0**-24  # rounding a number to float32 moves it by at most this share of it
ROUNDOFF64 = 2.0**-53
# Right implementations of nine architectures sit at 1 to 4 units of roundoff, the smallest of 22
# planted mistakes at 44. One factor serves every rung; nothing widens it.
FACTOR = 8
NUDGES = 6

Figures = Mapping[str, np.ndarray]
Floor = Callable[[Figures], Mapping[str, float]]


def norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64).ravel()))


def distance(found: np.ndarray | None, truth: np.ndarray) -> float:
    """‖found − truth‖; infinite where `found` is missing, misshapen or not finite."""
    if found is None or np.shape(found) != np.shape(truth):
        return np.inf
    error = norm(np.asarray(found, np.float64) - truth)
    return error if np.isfinite(error) else np.inf


def over(error: float, budget: float) -> float:
    """Error over budget: above 1 is a mismatch. No error is right even where there is no room."""
    if error == 0:
        return 0.0
    return error / budget if budget > 0 and np.isfinite(budget) else np.inf


def nudged(start: Mapping[str, np.ndarray], seed: int) -> Iterator[Arrays]:
    """`start` (float arrays; integers stay) with every number changed by ±FACTOR·ROUNDOFF of it.

    The signs are random, each pattern is used both ways: where a ReLU's input lies so close to
    zero that rounding may flip it, one of the two nearly always does, and the jump is accounted
    for. The factor stands here and not before the result for the same reason; where the referee
    is smooth, the two are the same.
    """
    for k in range(NUDGES):
        rng = np.random.Generator(philox(seed, "nudge", k))
        share = {name: FACTOR * ROUNDOFF * rng.choice([-1.0, 1.0], np.shape(value))
                 for name, value in start.items() if np.asarray(value).dtype.kind == "f"}
        for sign in (1, -1):
            yield {name: value * (1 + sign * share[name]) if name in share else value
                   for name, value in start.items()}


def own_rounding(truth: Figures) -> dict[str, float]:
    """Least room of a figure: that it is itself a float32 number."""
    return {name: ROUNDOFF * norm(value) for name, value in truth.items()}


@dataclass(frozen=True)
class Verdict:
    """What the referee says: the true figures, and how far from each a right result may be."""

    truth: Figures
    budget: Mapping[str, float]


def judge(evaluate: Callable[[Arrays], Figures], start: Arrays, seed: int,
          floor: Floor = own_rounding) -> Verdict:
    """Evaluate the referee at `start` and around it.

    The budget is the farthest move, and FACTOR times the `floor` besides: a sensitivity to what
    goes in knows nothing of the rounding of what comes out.
    """
    exact = {name: np.asarray(value, np.float64) if np.asarray(value).dtype.kind == "f" else value
             for name, value in start.items()}
    truth = evaluate(exact)
    farthest = dict.fromkeys(truth, 0.0)
    for aside in nudged(exact, seed):
        for name, moved in evaluate(aside).items():
            farthest[name] = max(farthest[name], distance(moved, truth[name]))
    rounding = floor(truth)
    return Verdict(truth, {name: farthest[name] + FACTOR * rounding[name] for name in truth})
