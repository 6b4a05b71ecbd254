"""Where the model jumps: a choice of experts that is within roundoff of another one.

Two experts may score as close as rounding, and a right panel then take the other one: what follows
is a jump away from the referee. The budgets know it, for the referee is nudged farther than
rounding goes, and flips such a choice too; nothing needs to be widened. But a case with a jump in
its budget says little, so it is told.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from parity.budget import nudged
from parity.cases import Case
from parity.subject import Subject, attempt
from specs.backend import Arrays, Batch


def hesitations(subject: Subject, case: Case) -> int:
    """How many choices the referee makes otherwise when it is nudged, at most."""
    tokens = case.batch.tokens
    return _hesitations(subject, tokens.shape, tokens.tobytes()) if subject.spec.routed else 0


@lru_cache(maxsize=64)  # most rungs are fed the same cases
def _hesitations(subject: Subject, shape: tuple[int, int], tokens: bytes) -> int:
    rows = np.frombuffer(tokens, np.int32).reshape(shape)
    exact = {name: value.astype(np.float64) for name, value in subject.weights.items()}
    chosen = choices(subject, exact, rows)
    return max(sum(int(np.sum(one != other)) for one, other in zip(
        chosen, choices(subject, aside, rows), strict=True))
        for aside in nudged(exact, subject.seed))


def choices(subject: Subject, weights: Arrays, tokens: np.ndarray) -> list[np.ndarray]:
    """The whole numbers that go into the referee's modules: tokens, and which experts they
    choose."""
    batch = Batch(tokens, tokens)
    trial = attempt(subject.spec, subject.referee, "float64", batch, weights)
    return [x for call in trial.backend.trace(trial.model, batch) for x in call.inputs
            if isinstance(x, np.ndarray) and x.dtype.kind == "i"]
