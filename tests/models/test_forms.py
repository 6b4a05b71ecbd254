"""What holds for every form of every architecture, on both panels: decoding is exact, nothing
sees what follows, precision is where it is named."""

from __future__ import annotations

import math

import numpy as np
import pytest

from specs.backend import Backend, Batch, Dtype, load_backend
from tests.models.forms import (
    FORMS,
    assert_nothing_later_is_seen,
    close,
    logits,
    spec_of,
    tokens,
    weights_of,
)

each_form = pytest.mark.parametrize("form", FORMS)


@each_form
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_later_token_changes_an_earlier_logit(backend: Backend, form: str,
                                                 dtype: Dtype) -> None:
    assert_nothing_later_is_seen(backend, spec_of(form), dtype, tokens(), (1, 25, 39))


@each_form
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [7, 1, 1, 20, 11], [5, 6, 7, 22]], ids=str)
def test_decoding_in_pieces_is_the_full_forward(backend: Backend, form: str,
                                                pieces: list[int]) -> None:
    spec = spec_of(form)
    model, data = backend.build(spec, weights_of(spec)), tokens(3, 41)
    decoder = backend.decoder(model, 3)
    found = [decoder.prefill(piece)
             for piece in np.split(data[:, :40], np.cumsum(pieces)[:-1], axis=1)]
    assert close(np.concatenate(found, 1), backend.logits(model, data[:, :40]), 200)
    assert decoder.offset == 40
    fork = decoder.fork([2, 0])
    assert close(fork.step(data[[2, 0], 40]), decoder.step(data[:, 40])[[2, 0]])


@each_form
def test_reading_gives_the_logits_behind_the_text(backend: Backend, form: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{backend.name}_models.decoder.PIECE", 16)
    spec, data = spec_of(form), tokens(2, 39)
    model = backend.build(spec, weights_of(spec))
    one, other = backend.decoder(model, 2), backend.decoder(model, 2)
    assert close(one.read(data[:, :38]), other.prefill(data[:, :38])[:, -1])
    assert close(one.step(data[:, 38]), other.step(data[:, 38]))


@each_form
@pytest.mark.parametrize("T", [1, 5, 6, 21])
def test_state_bytes_are_what_the_spec_says(backend: Backend, form: str, T: int) -> None:
    spec = spec_of(form)
    decoder = backend.decoder(backend.build(spec, weights_of(spec)), 2)
    decoder.prefill(tokens(2, T))
    assert decoder.state_bytes() == 2 * spec.decode_state_bytes(T)


@each_form
def test_recompute_changes_nothing(backend: Backend, form: str) -> None:
    spec = spec_of(form, dropout=0.2)
    weights, data = weights_of(spec), tokens()
    batch = Batch(data, data, np.array([3, -8], np.int32))
    (loss, grads), (again, grads_again) = (
        backend.loss_and_grads(backend.build(spec, weights, recompute=recompute), batch)
        for recompute in (False, True))
    assert loss == again
    for name, grad in grads.items():
        assert close(grads_again[name], grad, 8), name


@each_form
def test_both_panels_drop_the_same_elements(form: str) -> None:
    spec = spec_of(form, dropout=0.3)
    weights, data, losses = weights_of(spec), tokens(), set()
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
    weights = weights_of(spec)
    exact, half = logits(backend, spec, weights), logits(backend, spec, weights, dtype)
    eps = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    assert half.dtype == np.float32
    assert eps / 8 < np.linalg.norm(half - exact) / np.linalg.norm(exact) < 4 * eps


@each_form
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_decodes_as_it_reads(backend: Backend, form: str, dtype: Dtype) -> None:
    spec, data = spec_of(form), tokens()
    model = backend.build(spec, weights_of(spec), dtype)
    decoder = backend.decoder(model, 2)
    found = [decoder.prefill(piece) for piece in np.split(data, [3, 4, 5, 9, 10], axis=1)]
    width = 2 if spec.decode_kinds == ("cache",) else 4  # what is added up stays in float32
    assert 4 * decoder.state_bytes() == width * 2 * spec.decode_state_bytes(40)
    exact, eps = backend.logits(model, data), {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    error = np.linalg.norm(np.concatenate(found, 1) - exact)
    assert error < 2 * eps * np.linalg.norm(exact)


@each_form
def test_named_places_are_in_float32(backend: Backend, form: str) -> None:
    """Norms and the residual stream, whatever the dtype of the products; in between it is that."""
    spec = spec_of(form)
    data = tokens(1, 9)
    model = backend.build(spec, weights_of(spec), "float16")
    dtypes = {call.path: call.output.dtype for call in backend.trace(model, Batch(data, data))}
    for path, dtype in dtypes.items():
        inner = path.endswith(("proj", "mixer", "mlp", "lm_head", "experts", "shared"))
        assert dtype == (np.float16 if inner else np.float32), path


@each_form
@pytest.mark.needs("torch")
def test_the_referee_stays_in_float64(form: str) -> None:
    backend, spec = load_backend("torch", "cpu"), spec_of(form)
    data = tokens(1, 9)
    model = backend.build(spec, weights_of(spec), "float64")
    calls = backend.trace(model, Batch(data, data), grads=True)
    assert {array.dtype for call in calls for array in (call.output, call.grad)} == {
        np.dtype(np.float64)}
    assert backend.logits(model, data).dtype == np.float64
