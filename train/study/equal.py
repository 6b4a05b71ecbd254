"""Specs of all architectures with the same number of parameters, and nearly the same shape."""

from __future__ import annotations

from dataclasses import fields
from math import log
from typing import Any

from specs import Spec, UserError, architectures, spec_type
from train.study.setup import Setup

TOLERANCE = 0.02  # in parameters
# Inner widths that make up for the rest: in steps of, and how much that counts beside width, depth
KNOBS = {"d_ff": (8, 0.5), "mlp_internal_dim_multiplier": (1, 0.5), "d_state": (4, 4.0)}
FAR = 8.0  # a preset with so many times as many parameters is another form


def equal_setups(target: int, layers: int, width: int, vocab_size: int, block_size: int,
                 settings: dict[str, Any]) -> dict[str, Setup]:
    """A setup of `target` parameters for every architecture, by name."""
    common = {"block_size": block_size, "dropout": 0.0}
    return {arch: Setup(arch, {**common, **changed}, settings, preset)
            for arch in architectures()
            for preset, changed in [nearest(arch, target, layers, width,
                                            {**common, "vocab_size": vocab_size})]}


def nearest(arch: str, target: int, layers: int, width: int, common: dict[str, Any],
            ) -> tuple[str, dict[str, Any]]:
    """(preset, fields changed) of the spec with `common` fields nearest to this depth and width.

    The distance adds up |log| of the ratios of depth, of width, and, weighted, of the parameters
    that one inner width (of the MLP, of the neurons, of the state) makes up for. Raises `UserError`
    if nothing comes within TOLERANCE.
    """
    kind = spec_type(arch)
    best, chosen = float("inf"), None
    for away, preset, changed in shapes(kind, target, layers, width, common):
        if away >= best:
            break
        try:
            found = fitted(kind, preset, {**common, **changed}, target)
        except UserError:  # a width that heads do not divide
            continue
        if found is not None and away + found[0] < best:
            best, chosen = away + found[0], (preset, {**changed, **found[1]})
    if chosen is None:
        raise UserError(f"no {arch} has {target:,} parameters: the sizes between which to choose "
                        "are too far apart")
    return chosen


def shapes(kind: type[Spec], target: int, layers: int, width: int, common: dict[str, Any],
           ) -> list[tuple[float, str, dict[str, Any]]]:
    """(distance, preset, depth and width), the nearest first."""
    near = [name for name in kind.presets
            if abs(log(kind.preset(name, **common).param_count() / target)) < log(FAR)]
    found = [(abs(log(L / layers)) + abs(log(C / width)), name, {"n_layer": L, "n_embd": C})
             for name in near or kind.presets
             for L in range(max(1, layers // 2), 2 * layers + 1)
             for C in range(width // 2 // 8 * 8, 2 * width + 1, 8)]
    return sorted(found, key=lambda shape: shape[0])


def fitted(kind: type[Spec], preset: str, common: dict[str, Any], target: int,
           ) -> tuple[float, dict[str, Any]] | None:
    """(distance, what else must change for the target): nothing, or one inner width; None where
    neither reaches it."""
    def off(**more: Any) -> float:
        return kind.preset(preset, **{**common, **more}).param_count() / target - 1

    plain = off()
    if abs(plain) <= TOLERANCE:
        return 0.0, {}
    known = {field.name for field in fields(kind)}
    for name, (step, weight) in KNOBS.items():
        if name in known:
            few, more = off(**{name: step}), off(**{name: 2 * step})  # it grows in a straight line
            value = step * round(1 - few / (more - few))
            if value >= step and abs(off(**{name: value})) <= TOLERANCE:
                return weight * abs(log(1 + plain)), {name: value}
    return None
