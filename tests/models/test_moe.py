"""moe on both panels: groups are the plain form, and read what was chosen alone."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from specs import init_weights, spec_type
from specs.backend import Backend, Batch, Dtype
from specs.base import Spec
from tests.models.forms import FORMS, close, spec_of, tokens, weights_of

MOE = spec_type("moe")
MOE_FORMS = [form for form in FORMS if form.startswith("moe")]
each_form = pytest.mark.parametrize("form", MOE_FORMS)


def panel(backend: Backend) -> Any:
    return importlib.import_module(f"{backend.name}_models.moe")


def batch_of(spec: Spec, B: int = 2, T: int = 40, keys: bool = True) -> Batch:
    rows = tokens(B, T + 1)
    return Batch(rows[:, :-1], rows[:, 1:],
                 np.arange(7, 7 + B, dtype=np.int32) if keys and spec.noisy else None)


@pytest.mark.parametrize("preset, count, active", [
    ("384x6", 79_059_840, 36_592_512), ("mixtral", 22_817_024, 6_301_952),
    ("qwen3", 20_286_208, 3_771_136), ("demo", 1_355_616, 470_880)])
def test_parameter_count(preset: str, count: int, active: int) -> None:
    spec = MOE.preset(preset)
    assert spec.param_count() == count and spec.active_param_count() == active


@pytest.mark.parametrize("way", ["blocks", "rows", "experts"])
@pytest.mark.parametrize("B, T", [(1, 1), (5, 1), (1, 2), (1, 33), (3, 40)],
                         ids=lambda size: str(size))
@each_form
def test_groups_are_the_plain_form(backend: Backend, form: str, B: int, T: int, way: str,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and all gradients, in the form that this device takes and those that others take."""
    spec = spec_of(form)
    model, batch = backend.build(spec, weights_of(spec)), batch_of(spec, B, T)
    module = panel(backend)
    if way == "rows":
        monkeypatch.setattr(module.grouped, "block_size", lambda chosen, E: 1)
    if way == "experts" and backend.name == "torch":
        monkeypatch.setattr(module.grouped, "SMALL", 0)
    loss, grads = backend.loss_and_grads(model, batch)
    monkeypatch.setattr(module.Experts, "in_groups", module.Experts.plain)
    plain_loss, plain_grads = backend.loss_and_grads(model, batch)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    size = np.sqrt(sum(np.linalg.norm(grad) ** 2 for grad in plain_grads.values()))
    for name, grad in plain_grads.items():
        assert np.linalg.norm(grads[name] - grad) <= 1e-6 * size, name


def test_no_token_is_dropped_where_all_choose_the_same(backend: Backend,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("moe-mixtral")
    weights = init_weights(spec)
    for i in range(spec.n_layer):
        weights[f"layers.{i}.mlp.router.weight"][:] = 0  # all scores are equal
    model = backend.build(spec, weights)
    grouped = backend.logits(model, tokens(3))
    monkeypatch.setattr(panel(backend).Experts, "in_groups", panel(backend).Experts.plain)
    assert close(grouped, backend.logits(model, tokens(3)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("T", [1, 40])
def test_experts_that_nobody_chose_are_not_read(backend: Backend, T: int, dtype: Dtype) -> None:
    """They could hold anything."""
    spec = spec_of("moe-mixtral", n_experts=40, n_layer=1)
    weights, data = weights_of(spec), tokens(1, T)
    trace = backend.trace(backend.build(spec, weights, dtype), Batch(data, data))
    scores = next(call.output for call in trace if call.path.endswith("router"))
    chosen = np.unique(np.argsort(scores, -1)[..., -2:])
    assert len(chosen) < 40
    before = backend.logits(backend.build(spec, weights, dtype), data)
    for name in weights:
        if "experts" in name:
            others = np.delete(np.arange(40), chosen)
            weights[name][others] = np.nan
    np.testing.assert_array_equal(before, backend.logits(backend.build(spec, weights, dtype), data))
