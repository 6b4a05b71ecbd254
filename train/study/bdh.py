"""BDH without what our model always has: rotary tables that are kept, recomputation in tiles."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from specs import Spec
from specs.backend import Backend
from train.settings import Settings
from train.study.probe import probe
from train.study.timing import Cases, Figures, Work, compared, elsewhere, stepper


def rotary(backend: Backend, cases: Cases) -> Figures:
    """A step of one window with the tables of cos and sin kept, and with those of each layer
    computed anew when it needs them."""
    [(spec, settings)] = cases.values()
    settings = replace(settings, batch_size=1)  # MLX has each row's layers on a stream of its own
    module = importlib.import_module(f"{backend.name}_models.bdh")
    call = "__call__" if backend.name == "mlx" else "forward"
    turn, build, kept = getattr(module.PairRotary, call), module.Model.rotary, stepper(
        backend, spec, settings)
    models: list[Any] = []

    def noted(model: Any, start: int, T: int) -> Any:
        models[:] = [model]
        return build(model, start, T)

    def anew(self: Any, x: Any, cos: Any, sin: Any) -> Any:
        models[0]._rotary = None, None
        return turn(self, x, *build(models[0], 0, x.shape[-2]))

    def without() -> None:
        with patch.object(module.Model, "rotary", noted), patch.object(
                module.PairRotary, call, anew):
            kept()

    return compared({"kept": kept, "anew": without})


def layerwise(backend: Backend, cases: Cases) -> Figures:
    """A step whose layers are recomputed one at a time by the framework, as the note does it,
    beside one that keeps everything."""
    again, plain = cases.values()
    with elsewhere(backend, *again, by_layer) as one, elsewhere(backend, *plain) as other:
        found = compared({"again": one, "kept": other})
    with untiled(backend):
        return {**found, "memory": probe(backend, *again, [])["memory"]}


def untiled(backend: Backend) -> Any:
    """In whose block the option --recompute is that of the framework."""
    return patch.object(importlib.import_module(f"{backend.name}_models.bdh"), "in_tiles",
                        lambda model, x, cos, sin, key: model.plain(x, cos, sin, None, key))


def by_layer(backend: Backend, spec: Spec, settings: Settings) -> Work:
    step = stepper(backend, spec, settings)

    def work() -> None:
        with untiled(backend):
            step()

    return work
