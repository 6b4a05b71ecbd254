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


def constant(value: float) -> Init:
    """The same number everywhere: 1 for the weight of a norm, 0 for a bias."""
    return lambda rng, shape: np.full(shape, value, np.float32)


def uniform(bound: float) -> Init:
    """U(−bound, bound)."""
    return lambda rng, shape: rng.uniform(-bound, bound, shape).astype(np.float32)


def values(start: np.ndarray) -> Init:
    """These numbers, whatever the seed."""
    return lambda rng, shape: start.reshape(shape).astype(np.float32)


def orthogonal(gain: float = 1.0) -> Init:
    """`gain` times a matrix with orthonormal rows or columns, whichever are fewer, drawn evenly
    from all of those: the factor Q of a normal matrix, with the signs that leave R's diagonal
    positive, for a library is free to choose them (Mezzadri, arXiv math-ph/0609050)."""
    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        Q, R = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
        Q = Q * np.where(np.diagonal(R) < 0, -1.0, 1.0)
        return gain * (Q if shape[0] >= shape[1] else Q.T)

    return draw


def philox(seed: int, *names: object) -> np.random.Philox:
    """The random stream that belongs to (seed, names): a counter-based one, so nothing to save."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], np.uint64))


def init_weights(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw every parameter of `spec` in float32: {name: array of the table's shape}."""
    weights = {}
    for param in spec.params():
        rng = np.random.Generator(philox(seed, "weights", param.name))
        drawn = param.init(rng, param.shape)
        weights[param.name] = np.asarray(drawn, np.float32, order="C")
    return weights
