"""moe on both panels: groups are the plain form, decoding is exact, nothing sees what follows."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from specs import init_weights, spec_type
from specs.backend import Arrays, Backend, Batch, Dtype, load_backend
from specs.base import Spec
from tests.models.test_gpt import close, tokens

MOE = spec_type("moe")
TINY = MOE.preset("tiny", block_size=64)
FORMS: dict[str, dict[str, Any]] = {
    "mixtral": {"tie_embeddings": False},
    "qwen3": {"qk_norm": True, "head_dim": 12, "n_experts": 6, "n_experts_per_tok": 3,
              "norm_topk_prob": False},
    "shared": {"n_shared_experts": 2, "balance": "bias", "router_noise": 0.1, "n_experts": 9},
    "gelu": {"expert_mlp": "gelu", "embed_scale": True, "d_ff": 7},
    "silu": {"expert_mlp": "silu", "n_experts": 3, "n_experts_per_tok": 1},
    "all": {"n_experts": 2, "z_loss_coef": 0.01},
}
each_form = pytest.mark.parametrize("form", FORMS)


def spec_of(form: str, **fields: Any) -> Spec:
    return TINY.replace(**{**FORMS[form], **fields})


def weights_of(spec: Spec, seed: int = 0) -> Arrays:
    """Initial weights, but with routers that have preferences and biases that matter."""
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(w.shape) * 0.1).astype(np.float32)
            if "router" in name or "balance_bias" in name else w
            for name, w in init_weights(spec, seed).items()}


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


@each_form
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_later_token_changes_an_earlier_logit(backend: Backend, form: str,
                                                 dtype: Dtype) -> None:
    """Though later tokens choose the same experts."""
    spec = spec_of(form)
    model = backend.build(spec, weights_of(spec), dtype)
    data = tokens(1)
    before = backend.logits(model, data)
    for t in (1, 2, 25, 39):
        changed = data.copy()
        changed[:, t:] = (data[:, t:] + 1) % spec.vocab_size
        after = backend.logits(model, changed)
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert np.any(before[:, t] != after[:, t])


@each_form
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [7, 1, 1, 20, 11]], ids=str)
def test_decoding_in_pieces_is_the_full_forward(backend: Backend, form: str,
                                                pieces: list[int]) -> None:
    spec = spec_of(form)
    model, data = backend.build(spec, weights_of(spec)), tokens(3, 41)
    decoder = backend.decoder(model, 3)
    found = [decoder.prefill(piece)
             for piece in np.split(data[:, :40], np.cumsum(pieces)[:-1], axis=1)]
    assert close(np.concatenate(found, 1), backend.logits(model, data[:, :40]), 200)
    fork = decoder.fork([2, 0])
    assert close(fork.step(data[[2, 0], 40]), decoder.step(data[:, 40])[[2, 0]])


@pytest.mark.parametrize("T", [1, 21])
def test_state_bytes_are_what_the_spec_says(backend: Backend, T: int) -> None:
    spec = spec_of("qwen3")
    decoder = backend.decoder(backend.build(spec, init_weights(spec)), 2)
    decoder.prefill(tokens(2, T))
    assert decoder.state_bytes() == 2 * spec.decode_state_bytes(T)


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
    spec = spec_of("mixtral")
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
    spec = spec_of("mixtral", n_experts=40, n_layer=1)
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


@each_form
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(backend: Backend, form: str, dtype: Dtype) -> None:
    spec = spec_of(form)
    exact, half = (backend.logits(backend.build(spec, weights_of(spec), kind), tokens())
                   for kind in ("float32", dtype))
    eps = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    assert half.dtype == np.float32
    assert eps / 8 < np.linalg.norm(half - exact) / np.linalg.norm(exact) < 4 * eps


@each_form
def test_named_places_are_in_float32(backend: Backend, form: str) -> None:
    """Router, norms and the residual stream, whatever the dtype of the products."""
    spec = spec_of(form)
    data = tokens(1, 9)
    model = backend.build(spec, weights_of(spec), "float16")
    for call in backend.trace(model, Batch(data, data)):
        inner = call.path.endswith(("proj", "mixer", "mlp", "experts", "shared", "lm_head"))
        assert call.output.dtype == (np.float16 if inner else np.float32), call.path


@each_form
@pytest.mark.needs("torch")
def test_the_referee_stays_in_float64(form: str) -> None:
    backend, spec = load_backend("torch", "cpu"), spec_of(form)
    data = tokens(1, 9)
    model = backend.build(spec, weights_of(spec), "float64")
    calls = backend.trace(model, Batch(data, data, np.array([3], np.int32)), grads=True)
    assert {array.dtype for call in calls for array in (call.output, call.grad)} == {
        np.dtype(np.float64)}
