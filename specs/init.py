"""Initial weights: a property of the architecture, drawn by numpy, the same bytes for both panels.

Each tensor has a Philox stream of its own, keyed by (seed, parameter name), so adding or
reordering parameters changes no other tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from specs.base import Spec

Init = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(std: float) -> Init:
    """N(0, std²)."""
    return lambda rng, shape: rng.standard_normal(shape, np.float32) * np.float32(std)


def uniform(low: float, high: float) -> Init:
    """U(low, high)."""
    return lambda rng, shape: rng.random(shape, np.float32) * np.float32(high - low) + np.float32(
        low)


def constant(value: float) -> Init:
    """The same number everywhere: 1 for the weight of a norm, 0 for a bias."""
    return lambda rng, shape: np.full(shape, value, np.float32)


def philox(seed: int, *names: object) -> np.random.Philox:
    """The random stream that belongs to (seed, names): a counter-based one, so nothing to save."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], np.uint64))


def init_weights(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw every parameter of `spec` in float32: {name: array of the table's shape}."""
    weights = {}
    for param in spec.params():
        rng = np.random.Generator(philox(seed, "weights", param.name))
        weights[param.name] = np.asarray(param.init(rng, param.shape), np.float32)
    return weights
