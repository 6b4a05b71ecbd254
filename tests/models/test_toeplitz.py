"""toeplitz on both panels: every way of mixing is one function, in training and in decoding."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.budget import distance, judge
from specs import UserError, init_weights, spec_type
from specs.backend import Arrays, Backend, Batch, Dtype, load_backend
from specs.base import Spec
from tests.models.forms import (
    FORMS,
    assert_nothing_later_is_seen,
    close,
    spec_of,
    tokens,
    weights_of,
)

TOEPLITZ: Any = spec_type("toeplitz")
CHUNK = 7
WAYS = ["direct", "chunked", "fft"]
each_form = pytest.mark.parametrize("form", [form for form in FORMS if "toeplitz" in form])
each_way = pytest.mark.parametrize("way", WAYS)
each_variant = pytest.mark.parametrize("fields", [
    {"do_toep_mean": mean, "do_toep_proj": proj, "kernel": kernel}
    for mean in (False, True) for proj in (False, True) for kernel in ("softplus", "raw")],
    ids=lambda fields: "-".join(map(str, fields.values())))


def choose(backend: Backend, way: str, patch: pytest.MonkeyPatch) -> None:
    """Convolutions of any length are done so, in chunks of 7."""
    module = importlib.import_module(f"{backend.name}_models.longconv")
    patch.setattr(module, "CHUNK", CHUNK)
    patch.setattr(module, "fastest", lambda T, N: way)


def in_turn(model: Any) -> Any:
    """`model`, whose heads are mixed one after the other."""
    for layer in model.layers:
        layer.mixer.mix.heads = layer.mixer.mix.sequential
    return model


@pytest.mark.parametrize("preset, fields, count", [
    ("original", {}, 14_747_136), ("original", {"do_toep_proj": False}, 9_499_136),
    ("demo", {}, 466_048), ("10m", {}, 9_704_832)])
def test_parameter_count(preset: str, fields: dict, count: int) -> None:
    assert TOEPLITZ.preset(preset, **fields).param_count() == count


def test_initial_weights_are_as_published() -> None:
    weights = init_weights(TOEPLITZ.preset("original", n_layer=1))
    for name, w in weights.items():
        if "bias" in name:
            assert not w.any(), name
        elif "norm" in name:
            assert (w == 1).all(), name
        else:
            assert w.std() == pytest.approx(0.2, rel=0.04), name


def test_sums_of_raw_kernels_cross_zero() -> None:
    """What the mean divides by there."""
    kernels = [w for name, w in init_weights(TOEPLITZ.preset("original")).items()
               if name.endswith("mixer.kernel")]
    sums = np.cumsum(np.concatenate(kernels), axis=1, dtype=np.float64)
    assert 10 < np.mean(np.sum(sums[:, 1:] * sums[:, :-1] < 0, axis=1)) < 18


@pytest.mark.parametrize("panel", ["mlx", "torch"])
def test_running_sums_are_rounded_once(panel: str) -> None:
    """But for what is far below one number; and each of these is in all sums from its own on."""
    module = importlib.import_module(f"{panel}_models.toeplitz")
    rng = np.random.default_rng(0)
    for numbers in (rng.uniform(0, 2, (2, 16384)), 0.2 * rng.standard_normal((2, 16384))):
        numbers = numbers.astype(np.float32)
        exact = np.cumsum(numbers, axis=1, dtype=np.float64)
        assert np.abs(np.cumsum(numbers, axis=1) - exact).max() > 2**-18
        if panel == "mlx":
            import mlx.core as mx

            a = mx.array(numbers)
            found, grad = mx.value_and_grad(lambda a: module.running_sums(a)[:, 1::2].sum())(a)
            found, grad = module.running_sums(a), np.array(grad)
        else:
            import torch

            a = torch.tensor(numbers, requires_grad=True)
            found = module.running_sums(a)
            found[:, 1::2].sum().backward()
            found, grad = found.detach(), a.grad.numpy()
        assert (np.abs(np.asarray(found) - exact) <= 2**-24 * np.abs(exact) + 2**-20).all()
        np.testing.assert_array_equal(grad, [(np.arange(16384, 0, -1) + 1) // 2] * 2)


@each_variant
def test_heads_in_turn_are_heads_at_once(backend: Backend, fields: dict) -> None:
    spec = spec_of("toeplitz-softplus", **fields)
    weights, data = weights_of(spec), tokens()
    batch = Batch(data, data)
    (loss, grads), (again, grads_again) = (
        backend.loss_and_grads(change(backend.build(spec, weights)), batch)
        for change in (lambda model: model, in_turn))
    assert again == pytest.approx(loss, rel=1e-6)
    for name, grad in grads.items():
        assert close(grads_again[name], grad), name


@each_form
@each_way
@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "recompute"])
def test_every_way_of_training_is_one(backend: Backend, form: str, way: str, recompute: bool,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    spec, data = spec_of(form, dropout=0.2), tokens(3, 60)
    batch, weights = Batch(data, data, np.array([3, -8, 99], np.int32)), weights_of(spec)
    choose(backend, "direct", monkeypatch)
    loss, grads = backend.loss_and_grads(backend.build(spec, weights), batch)
    choose(backend, way, monkeypatch)
    model = backend.build(spec, weights, recompute=recompute)
    other, other_grads = backend.loss_and_grads(model, batch)
    assert other == pytest.approx(loss, rel=1e-6)
    whole = np.sqrt(sum(np.linalg.norm(grad) ** 2 for grad in grads.values()))
    for name, grad in grads.items():
        assert np.linalg.norm(other_grads[name] - grad) <= 16 * 2**-24 * whole, name
    assert way == "direct" or any(np.any(other_grads[name] != grad) for name, grad in grads.items())


@each_form
@pytest.mark.parametrize("way", ["direct", "chunked"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_see_nothing_later(backend: Backend, form: str, way: str, dtype: Dtype,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    choose(backend, way, monkeypatch)
    assert_nothing_later_is_seen(backend, spec_of(form), dtype, tokens(2, 60),
                                 (1, CHUNK - 1, CHUNK, 5 * CHUNK, 59))


@each_form
def test_transforms_see_nothing_later_but_roundings(backend: Backend, form: str,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever follows, the logits before it stay within their budget of what the referee makes
    of them alone; where they are of the changed token, they are far outside."""
    choose(backend, "fft", monkeypatch)
    spec, referee = spec_of(form), load_backend("torch", "cpu")
    weights, data = weights_of(spec), tokens(2, 60)
    model = backend.build(spec, weights)
    for t in (1, 31, 59):
        def alone(start: Arrays, t: int = t) -> Arrays:
            return {"before": referee.logits(referee.build(spec, start, "float64"), data[:, :t])}

        verdict, changed = judge(alone, weights, 0), data.copy()
        changed[:, t:] = (data[:, t:] + 1) % spec.vocab_size
        found = backend.logits(model, changed)
        assert distance(found[:, :t], verdict.truth["before"]) <= verdict.budget["before"]
        late = backend.logits(model, np.roll(changed, 1, axis=1))
        assert distance(late[:, :t], verdict.truth["before"]) > 100 * verdict.budget["before"]


@each_form
@pytest.mark.parametrize("kind", ["cache", "online"])
@pytest.mark.parametrize("pieces", [[300], [7, 1, 1, 140, 151], [63, 1, 64, 100, 72],
                                    [3, *[1] * 70, 227]], ids=lambda pieces: f"{len(pieces)}")
def test_decoding_in_pieces_of_any_size(backend: Backend, form: str, kind: str,
                                        pieces: list[int]) -> None:
    spec = spec_of(form, block_size=301)
    model, data = backend.build(spec, weights_of(spec)), tokens(2, 301)
    decoder = backend.decoder(model, 2, 301, kind)
    found = [decoder.prefill(piece)
             for piece in np.split(data[:, :300], np.cumsum(pieces)[:-1], axis=1)]
    assert decoder.state_bytes() == 2 * spec.decode_state_bytes(300, kind)
    found.append(decoder.step(data[:, 300])[:, None])
    assert close(np.concatenate(found, 1), backend.logits(model, data), 200)


def test_more_tokens_than_distances_are_refused(backend: Backend) -> None:
    spec = spec_of("toeplitz-softplus")
    decoder = backend.decoder(backend.build(spec, weights_of(spec)))
    decoder.prefill(tokens(1, 64))
    with pytest.raises(UserError, match="65 tokens is too long, this model knows 64 positions"):
        decoder.step(tokens(1, 1)[:, 0])


def test_dropout_is_inside_the_mlp_alone(backend: Backend) -> None:
    """Without what leaves it no key matters."""
    spec, data = spec_of("toeplitz-softplus", dropout=0.3), tokens()
    weights = weights_of(spec)
    silent = {name: w * np.float32("down_proj.weight" not in name) for name, w in weights.items()}
    for given_weights, alike in ((weights, False), (silent, True)):
        model = backend.build(spec, given_weights)
        losses = {backend.loss_and_grads(model, Batch(data, data, key))[0]
                  for key in (None, np.array([1, 2], np.int32))}
        assert (len(losses) == 1) == alike


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 400), st.booleans())
def test_flops_are_counted(D: int, H: int, T: int, proj: bool) -> None:
    """Against a plain count of every product of a forward pass, one by one."""
    C, F = D * H, 17
    spec = TOEPLITZ(n_embd=C, n_head=H, d_ff=F, n_layer=3, vocab_size=11, do_toep_proj=proj)
    matrices = 2 * (2 * C * F + 2 * C * C * proj)
    pairs = sum(2 * C * (t + 1) for t in range(T))
    transforms = C * (2 * 2.5 * 2 * T * math.log2(2 * T) + 6 * (T + 1))
    layer = T * matrices + min(pairs, transforms)
    assert spec.flops_per_token(T) * T == pytest.approx(3 * layer + T * 2 * C * 11)


@pytest.mark.parametrize("tied", [True, False])
def test_decoding_traffic_is_counted(tied: bool) -> None:
    """All weights but the rows of an untied embedding; of the plain cache all inputs."""
    spec: Spec = TOEPLITZ.preset("tiny", tie_embeddings=tied)
    unread = 0 if tied else 4 * 64 * 32
    assert spec.decode_state_bytes(30, "cache") == 4 * 2 * 32 * 30
    weights = 4 * spec.param_count() - unread
    assert spec.decode_traffic(30, "cache") == weights + 4 * 2 * 32 * 30
    assert weights < spec.decode_traffic(600, "online") < spec.decode_traffic(600, "cache") / 1.2
