"""gpt on both panels: options mean what they say, decoding is exact, nothing sees what follows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from specs import init_weights, spec_type
from specs.backend import Arrays, Backend, Batch, Dtype, load_backend
from specs.base import Spec
from specs.errors import UserError

GPT = spec_type("gpt")
TINY = GPT.preset("tiny", block_size=64)
FORMS: dict[str, dict[str, Any]] = {
    "gpt2": {"norm": "layernorm", "pos": "learned", "mlp": "gelu_tanh", "bias": True},
    "llama": {"tie_embeddings": False, "n_kv_head": None},
    "qwen3": {"qk_norm": True, "head_dim": 12},
    "mistral": {"window": 6},
    "sinks": {"window": 6, "sinks": 3, "n_kv_head": 1},
    "relu2": {"mlp": "relu2", "pos": "none", "logit_softcap": 3.0},
    "gelu": {"mlp": "gelu", "norm": "layernorm", "qk_norm": True},
}
each_form = pytest.mark.parametrize("form", FORMS)


def spec_of(form: str, **fields: Any) -> Spec:
    return TINY.replace(**{**FORMS[form], **fields})


def tokens(B: int = 2, T: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 64, (B, T)).astype(np.int32)


def logits(backend: Backend, spec: Spec, weights: Arrays, dtype: Dtype = "float32") -> np.ndarray:
    return backend.logits(backend.build(spec, weights, dtype), tokens())


def close(a: np.ndarray, b: np.ndarray, ulps: float = 64) -> bool:
    """Equal but for float32 rounding of sums."""
    return bool(np.linalg.norm(a - b) <= ulps * 2**-24 * np.linalg.norm(b))


@pytest.mark.parametrize("preset, count", [
    ("gpt2", 124_439_808), ("medium", 354_823_168), ("llama", 10_818_432), ("qwen3", 11_901_312),
    ("mistral", 9_638_784), ("nanogpt-cpu", 829_696), ("nanogpt-gpu", 10_823_424)])
def test_parameter_count(preset: str, count: int) -> None:
    assert GPT.preset(preset).param_count() == count


@each_form
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_later_token_changes_an_earlier_logit(backend: Backend, form: str,
                                                 dtype: Dtype) -> None:
    spec = spec_of(form)
    model = backend.build(spec, init_weights(spec), dtype)
    data = tokens()
    before = backend.logits(model, data)
    for t in (1, 25, 39):
        changed = data.copy()
        changed[:, t:] = (data[:, t:] + 1) % spec.vocab_size
        after = backend.logits(model, changed)
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert np.any(before[:, t] != after[:, t])


@each_form
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [7, 1, 1, 20, 11], [5, 6, 7, 22]], ids=str)
def test_decoding_in_pieces_is_the_full_forward(backend: Backend, form: str,
                                                pieces: list[int]) -> None:
    spec = spec_of(form)
    model, data = backend.build(spec, init_weights(spec)), tokens(3, 41)
    decoder = backend.decoder(model, 3)
    found = [decoder.prefill(piece)
             for piece in np.split(data[:, :40], np.cumsum(pieces)[:-1], axis=1)]
    assert close(np.concatenate(found, 1), backend.logits(model, data[:, :40]), 200)
    assert decoder.offset == 40
    fork = decoder.fork([2, 0])
    assert close(fork.step(data[[2, 0], 40]), decoder.step(data[:, 40])[[2, 0]])


@each_form
@pytest.mark.parametrize("T", [1, 5, 6, 21])
def test_state_bytes_are_what_the_spec_says(backend: Backend, form: str, T: int) -> None:
    spec = spec_of(form)
    decoder = backend.decoder(backend.build(spec, init_weights(spec)), 2)
    decoder.prefill(tokens(2, T))
    assert decoder.state_bytes() == 2 * spec.decode_state_bytes(T)


def test_grouped_heads_are_full_heads_that_share(backend: Backend) -> None:
    full = TINY.replace(n_kv_head=None)
    weights = init_weights(TINY)
    repeated = dict(weights)
    for name in weights:
        if ".k_proj" in name or ".v_proj" in name:
            heads = weights[name].reshape(TINY.kv_heads, -1, TINY.n_embd)
            repeated[name] = heads.repeat(2, axis=0).reshape(-1, TINY.n_embd)
    assert close(logits(backend, TINY, weights), logits(backend, full, repeated))


def test_a_tied_head_is_the_embedding(backend: Backend) -> None:
    weights = init_weights(TINY)
    untied = {**weights, "lm_head.weight": weights["embed.weight"]}
    same = logits(backend, TINY.replace(tie_embeddings=False), untied)
    np.testing.assert_array_equal(logits(backend, TINY, weights), same)


def test_a_window_that_shows_all_changes_nothing(backend: Backend) -> None:
    weights = init_weights(TINY)
    plain, wide, narrow = (logits(backend, TINY.replace(window=w), weights) for w in (None, 40, 39))
    np.testing.assert_array_equal(plain, wide)
    sinks = logits(backend, TINY.replace(window=37, sinks=3), weights)
    assert close(sinks, plain) and not close(narrow, plain)
    assert close(narrow[:, :39], plain[:, :39])


def test_softcap_is_a_bound(backend: Backend) -> None:
    weights = init_weights(TINY)
    plain, capped = (logits(backend, TINY.replace(logit_softcap=c), weights) for c in (None, 0.1))
    assert np.abs(plain).max() > 0.1 and close(capped, 0.1 * np.tanh(plain / 0.1))


def test_rotation_is_relative_and_exact_far_away() -> None:
    angle = GPT.preset("llama").rotary(1_000_000, 2)
    assert angle.dtype == np.float64
    assert angle[0, 0] == 1_000_000
    assert angle[1, 1] == pytest.approx(1_000_001 * 10000 ** (-2 / 64), rel=1e-15)


@pytest.mark.parametrize("name", ["mlx", "torch"])
def test_more_positions_than_were_learned(name: str) -> None:
    backend, spec = load_backend(name, "cpu"), spec_of("gpt2", block_size=16)
    model = backend.build(spec, init_weights(spec))
    with pytest.raises(UserError, match="17 tokens is too long, this model knows 16 positions"):
        backend.logits(model, tokens(1, 17))
    decoder = backend.decoder(model)
    decoder.prefill(tokens(1, 16))
    with pytest.raises(UserError, match="17 tokens"):
        decoder.step(tokens(1, 1)[:, 0])


@each_form
def test_recompute_changes_nothing(backend: Backend, form: str) -> None:
    spec = spec_of(form, dropout=0.2)
    weights, data = init_weights(spec), tokens()
    batch = Batch(data, data, np.array([3, -8], np.int32))
    (loss, grads), (again, grads_again) = (
        backend.loss_and_grads(backend.build(spec, weights, recompute=recompute), batch)
        for recompute in (False, True))
    assert loss == again
    for name, grad in grads.items():
        assert close(grads_again[name], grad, 8), name


def test_both_panels_drop_the_same_elements() -> None:
    spec = TINY.replace(dropout=0.3)
    weights, data, losses = init_weights(spec), tokens(), set()
    for keys in ([1, 2], [1, 3], None):
        batch = Batch(data, data, keys and np.array(keys, np.int32))
        one, two = (backend.loss_and_grads(backend.build(spec, weights), batch)[0]
                    for backend in map(load_backend, ("mlx", "torch")))
        assert math.isclose(one, two, rel_tol=1e-6)
        losses.add(one)
    assert len(losses) == 3


@each_form
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(backend: Backend, form: str, dtype: Dtype) -> None:
    spec = spec_of(form)
    weights = init_weights(spec)
    exact, half = logits(backend, spec, weights), logits(backend, spec, weights, dtype)
    eps = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    assert half.dtype == np.float32
    assert eps / 8 < np.linalg.norm(half - exact) / np.linalg.norm(exact) < 4 * eps


@each_form
def test_named_places_are_in_float32(backend: Backend, form: str) -> None:
    """Norms and the residual stream, whatever the dtype of the products; in between it is that."""
    spec = spec_of(form)
    data = tokens(1, 9)
    model = backend.build(spec, init_weights(spec), "float16")
    dtypes = {call.path: call.output.dtype for call in backend.trace(model, Batch(data, data))}
    for path, dtype in dtypes.items():
        inner = path.endswith(("proj", "mixer", "mlp", "lm_head"))
        assert dtype == (np.float16 if inner else np.float32), path


@each_form
@pytest.mark.needs("torch")
def test_the_referee_stays_in_float64(form: str) -> None:
    backend, spec = load_backend("torch", "cpu"), spec_of(form)
    data = tokens(1, 9)
    model = backend.build(spec, init_weights(spec), "float64")
    calls = backend.trace(model, Batch(data, data), grads=True)
    assert {array.dtype for call in calls for array in (call.output, call.grad)} == {
        np.dtype(np.float64)}
    assert backend.logits(model, data).dtype == np.float64
