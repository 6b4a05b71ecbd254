"""What the rungs are fed: small specs, weights that hide nothing, batches at the edges."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from specs import UserError, spec_type
from specs.backend import Arrays, Batch
from specs.base import Spec
from specs.init import init_weights, philox


@dataclass(frozen=True)
class Case:
    """A batch, named after its shape: "B2-T65"."""

    name: str
    batch: Batch


def random_case(spec: Spec, B: int, T: int, seed: int, dropout: bool = False) -> Case:
    """B rows of T random tokens, each to be followed by the next; with dropout keys or without.

    T is cut to the spec's block_size.
    """
    T = min(T, spec.block_size)
    rng = np.random.Generator(philox(seed, "case", B, T))
    rows = rng.integers(spec.vocab_size, size=(B, T + 1), dtype=np.int32)
    keys = rng.integers(2**31, size=B, dtype=np.int32) if dropout else None
    batch = Batch(rows[:, :-1].copy(), rows[:, 1:].copy(), keys)
    return Case(f"B{B}-T{T}" + "-dropout" * dropout, batch)


def edge_cases(spec: Spec, seed: int) -> list[Case]:
    """Shapes where implementations go wrong, the smallest first.

    One token; two; around the window; around powers of two, where blocks and chunks end; no
    multiple of anything; and a row of more than 500 tokens, which is past every chunk. A large
    model, slow and big in float64, is spared some of these: small ones have been through them.
    """
    window, size = getattr(spec, "window", None) or 5, spec.param_count()
    around = [(2, window - 1), (3, window), (1, window + 1), (1, 63), (2, 64), (1, 65)]
    shapes = [(3, 1), (2, 2), *(around if size < 200_000 else []), (2, 37),
              (1, 513 if size < 10_000_000 else 129)]
    shapes = [(B, min(T, spec.block_size)) for B, T in shapes]
    return [random_case(spec, B, T, seed) for B, T in dict.fromkeys(shapes)]


def lively_weights(spec: Spec, seed: int) -> Arrays:
    """Initial weights, with noise in the tensors that start constant.

    A bias of zeros or a norm weight of ones would hide that a panel forgot it. Poles are left.
    """
    weights = init_weights(spec, seed)
    for name, value in weights.items():
        if np.ptp(value) == 0:
            rng = np.random.Generator(philox(seed, "lively", name))
            std = 0.1 if value.ndim < 2 else value.shape[-1] ** -0.5
            weights[name] = value + np.float32(std) * rng.standard_normal(value.shape, np.float32)
    return spec.away_from_poles(weights)


def random_spec(arch: str, seed: int) -> Spec:
    """An odd relative of the architecture's "tiny" preset: every option and size drawn anew."""
    kind = spec_type(arch)
    tiny = kind.preset("tiny")
    hints = typing.get_type_hints(kind)
    for attempt in range(1000):
        rng = np.random.Generator(philox(seed, "spec", arch, attempt))
        fields = {f.name: _draw(rng, hints[f.name], getattr(tiny, f.name))
                  for f in dataclasses.fields(kind) if f.name != "block_size"}
        fields["dropout"] = float(rng.choice([0.0, 0.2]))
        try:
            return tiny.replace(**fields)
        except UserError:
            continue  # sizes that do not go together
    raise UserError(f"{arch}: no valid spec near its preset 'tiny' in 1000 draws")


def _draw(rng: np.random.Generator, hint: Any, value: Any) -> Any:
    """Another value for a field: any of its choices, whole numbers from half to twice `value`
    (to 3 for 0), or where it may be null, null or a number up to 39, small ones more often."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)[rng.integers(len(typing.get_args(hint)))]
    if isinstance(hint, types.UnionType):
        number = next(kind for kind in typing.get_args(hint) if kind in (int, float))
        return None if rng.random() < 0.5 else number(int(40 ** rng.random()))
    if hint is bool:
        return bool(rng.integers(2))
    if hint is int:
        return int(rng.integers(max(1, value // 2), 2 * value + 1) if value else rng.integers(4))
    return value
