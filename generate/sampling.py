"""From logits to the next token, in float64 numpy, the same for both backends.

Order: repetition penalty, temperature, top-k, top-p, min-p; what is left is renormalised. The
random number of the token at position t belongs to (seed, t) alone: not to its row, so that a
prompt in a batch gets the text that it would have had alone, nor to the backend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from specs.errors import UserError
from specs.init import philox


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a token is chosen. Raises `UserError`, naming the option, for a value out of range.

    temperature: the logits are divided by it; 0 takes the likeliest token.
    top_k: only the k likeliest tokens (0: all).
    top_p: only the likeliest tokens that together reach this probability (1: all).
    min_p: only tokens at least this fraction as likely as the likeliest (0: all).
    repetition_penalty: a token read before has its logit divided by this where positive and
        multiplied where negative (CTRL, arXiv 1909.05858; 1: none).
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0 <= self.temperature < math.inf, "0 (the likeliest token) or more"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (all tokens)"),
            "min_p": (0 <= self.min_p <= 1, "from 0 (all tokens) to 1"),
            "repetition_penalty": (0.1 <= self.repetition_penalty <= 10,
                                   "from 0.1 to 10; 1 is no penalty"),
        }
        for name, (good, wanted) in ranges.items():
            if not good:
                option = "--" + name.replace("_", "-")
                raise UserError(f"{option} {getattr(self, name)} must be {wanted}")

    def __call__(self, logits: np.ndarray, read: np.ndarray) -> int:
        """The token after those in `read` (n,), from its logits (V,)."""
        p = self.probabilities(logits, read)
        if self.temperature == 0:
            return int(p.argmax())
        # In the order of the ids, not of likelihood: two tokens that rounding swaps in rank
        # then stay where they are.
        total = np.cumsum(p)
        return int(np.searchsorted(total, uniform(self.seed, len(read)) * total[-1], "right"))

    def probabilities(self, logits: np.ndarray, read: np.ndarray) -> np.ndarray:
        """Probability of each token after those in `read` (n,), from logits (V,): (V,) float64.

        Raises `UserError` for logits that are no numbers.
        """
        logits = logits.astype(np.float64)
        if not np.isfinite(logits).all():
            raise UserError(f"the model's output at position {len(read)} is not finite: try "
                            "--dtype float32, or an earlier checkpoint with --step")
        repeated = logits[read]
        logits[read] = np.where(repeated > 0, repeated / self.repetition_penalty,
                                repeated * self.repetition_penalty)
        if self.temperature == 0:
            return (np.arange(logits.size) == logits.argmax()).astype(np.float64)
        with np.errstate(over="ignore"):  # a tiny temperature
            p = np.exp((logits - logits.max()) / self.temperature)
        if self.top_k or self.top_p < 1:
            order = np.argsort(-p, kind="stable")
            if self.top_k:
                p[order[self.top_k:]] = 0
            before = np.cumsum(p[order]) - p[order]
            p[order[before >= self.top_p * p.sum()]] = 0
        p[p < self.min_p * p.max()] = 0
        return p / p.sum()


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) for the token at `position`."""
    return (philox(seed, "sample", position).random_raw() >> 11) * 2.0**-53
