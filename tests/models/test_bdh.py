"""BDH on both panels: its forms agree, its facts hold, its official state dict loads."""

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest

from specs import init_weights, spec_type
from specs.backend import Backend, Batch, load_backend
from specs.base import Spec
from specs.errors import UserError

BDH = spec_type("bdh")
CHUNK = 16  # short enough that small inputs cross several chunks
LENGTHS = [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]


def tokens(spec: Spec, B: int = 2, T: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, spec.vocab_size, (B, T)).astype(np.int32)


def close(a: np.ndarray, b: np.ndarray, ulps: float = 64) -> bool:
    """Equal but for float32 rounding of sums."""
    return bool(np.linalg.norm(a - b) <= ulps * 2**-24 * np.linalg.norm(b))


@pytest.mark.parametrize("preset, count", [("25m", 25_296_896), ("10m", 9_912_320),
                                           ("100m", 100_925_440), ("demo", 425_984)])
def test_parameter_count(preset: str, count: int) -> None:
    assert BDH.preset(preset).param_count() == count


def form(panel: str, name: str, r: np.ndarray, x: np.ndarray, spec: Spec):
    """Output of one form of attention, and the gradients of its weighted sum."""
    module = importlib.import_module(f"{panel}_models.bdh")
    attention = module.Attention(spec)
    weights = np.random.default_rng(9).standard_normal((*r.shape[:3], x.shape[-1]))

    def output(r, x):
        if name == "quadratic":
            return attention.quadratic(r, r, x)
        if name == "chunkwise":
            return attention.chunkwise(r, x, chunk=CHUNK)[0]
        return attention.recurrent(r, x)[0]

    if panel == "torch":
        import torch
        leaves = [torch.tensor(a, requires_grad=True) for a in (r, x)]
        y = output(*leaves)
        grads = torch.autograd.grad((y * torch.tensor(weights)).sum(), leaves)
        return [a.numpy(force=True) for a in (y, *grads)]
    import mlx.core as mx
    leaves = [mx.array(a) for a in (r, x)]
    loss = lambda *a: (output(*a) * mx.array(weights.astype(np.float32))).sum()  # noqa: E731
    return [np.array(a) for a in (output(*leaves), *mx.grad(loss, (0, 1))(*leaves))]


@pytest.mark.parametrize("T", LENGTHS, ids=lambda T: f"T{T}")
@pytest.mark.parametrize("panel", ["mlx", "torch"])
@pytest.mark.parametrize("name", ["chunkwise", "recurrent"])
def test_forms_agree(panel: str, name: str, T: int) -> None:
    spec = BDH.preset("tiny", score_scale="sqrt")
    rng = np.random.default_rng(T)
    r = rng.standard_normal((spec.n_head, 2, T, 12)).astype(np.float32)
    x = rng.standard_normal((2, T, 5)).astype(np.float32)
    for got, wanted in zip(form(panel, name, r, x, spec), form(panel, "quadratic", r, x, spec),
                           strict=True):
        assert close(got, wanted) or not np.any(wanted)


def test_long_inputs_take_the_chunkwise_form(backend: Backend, tiny: Spec) -> None:
    T = 2 * tiny.n_embd + 2 * 256
    model = backend.build(tiny, init_weights(tiny))
    data = tokens(tiny, 1, T)
    whole = backend.logits(model, data)
    short = backend.logits(model, data[:, :100])
    assert close(whole[:, :100], short, 2000)


@pytest.mark.parametrize("state, fields", [
    *itertools.product(["cache", "recurrent"],
                       [{}, {"share_layers": False}, {"score_scale": "linear"}]),
    ("cache", {"window": 5}),
], ids=str)
def test_cached_decoding_is_the_full_forward(backend: Backend, tiny: Spec, state: str,
                                             fields: dict) -> None:
    spec = tiny.replace(**fields)
    model = backend.build(spec, init_weights(spec))
    data = tokens(spec, 3, 300)
    decoder = backend.decoder(model, 3, state=state)
    pieces = [decoder.prefill(data[:, :7]), decoder.prefill(data[:, 7:270])]
    pieces += [decoder.step(data[:, t])[:, None] for t in range(270, 299)]
    assert close(np.concatenate(pieces, 1), backend.logits(model, data[:, :299]), 2000)
    assert decoder.offset == 299
    fork = decoder.fork([2, 0])
    assert close(fork.step(data[[2, 0], 299]), decoder.step(data[:, 299])[[2, 0]])


@pytest.mark.parametrize("state, window", [("cache", None), ("cache", 9), ("recurrent", None)])
def test_state_bytes_are_what_the_spec_says(backend: Backend, tiny: Spec, state: str,
                                            window: int | None) -> None:
    spec = tiny.replace(window=window)
    decoder = backend.decoder(backend.build(spec, init_weights(spec)), 2, state=state)
    data = tokens(spec, 2, 21 + spec.unwritten)
    decoder.prefill(data[:, :21])
    for t in range(21, data.shape[1]):
        decoder.step(data[:, t])
    assert decoder.state_bytes() == 2 * spec.decode_state_bytes(data.shape[1], state)


def test_the_cheaper_state_is_chosen_by_length() -> None:
    spec = BDH.preset("25m")
    assert [spec.decode_kind(T) for T in (1, 286, 287, 4096)] == [
        "cache", "cache", "recurrent", "recurrent"]
    assert spec.replace(window=300).decode_kind(4096) == "cache"


def test_a_window_has_no_recurrent_state(tiny: Spec, backend: Backend) -> None:
    spec = tiny.replace(window=4)
    model = backend.build(spec, init_weights(spec))
    with pytest.raises(UserError, match="It has: cache"):
        backend.decoder(model, state="recurrent")


def test_no_later_token_changes_an_earlier_logit(backend: Backend, tiny: Spec) -> None:
    model = backend.build(tiny, init_weights(tiny))
    data = tokens(tiny)
    before = backend.logits(model, data)
    data[:, 25:] = (data[:, 25:] + 1) % tiny.vocab_size
    after = backend.logits(model, data)
    np.testing.assert_array_equal(before[:, :25], after[:, :25])
    assert np.any(before[:, 26:] != after[:, 26:])


def test_position_0_gets_nothing_from_attention(backend: Backend, tiny: Spec) -> None:
    model = backend.build(tiny, init_weights(tiny))
    data = tokens(tiny)
    for call in backend.trace(model, Batch(data, data)):
        if call.path.endswith(".attn"):
            assert not np.any(call.output[:, :, 0])
            assert np.any(call.output[:, :, 1])


def test_score_scale(backend: Backend, tiny: Spec) -> None:
    """1/√N is no change of function, for LN follows; 1/N is one, through eps."""
    spec = tiny.replace(mlp_internal_dim_multiplier=64)  # N = 1024
    data, weights = tokens(spec), init_weights(spec)
    plain, root, linear = (
        backend.logits(backend.build(spec.replace(score_scale=scale), weights), data)
        for scale in ("none", "sqrt", "linear"))
    assert np.abs(root - plain).max() < 0.02 * np.abs(linear - plain).max()


@pytest.mark.parametrize("share_layers", [True, False])
def test_recompute_changes_nothing(backend: Backend, tiny: Spec, share_layers: bool) -> None:
    spec = tiny.replace(dropout=0.2, share_layers=share_layers)
    weights, data = init_weights(spec), tokens(spec)
    batch = Batch(data, data, np.array([3, -8], np.int32))
    loss, grads = backend.loss_and_grads(backend.build(spec, weights), batch)
    again, grads_again = backend.loss_and_grads(backend.build(spec, weights, recompute=True), batch)
    assert loss == again
    for name, grad in grads.items():
        assert close(grads_again[name], grad, 8), name


def test_both_panels_drop_the_same_elements(tiny: Spec) -> None:
    spec = tiny.replace(dropout=0.3)
    weights, data = init_weights(spec), tokens(spec)
    losses = {}
    for keys in ([1, 2], [1, 3], None):
        batch = Batch(data, data, keys and np.array(keys, np.int32))
        pair = [backend.loss_and_grads(backend.build(spec, weights), batch)[0]
                for backend in map(load_backend, ("mlx", "torch"))]
        assert math.isclose(*pair, rel_tol=1e-6)
        losses[str(keys)] = pair[0]
    assert len(set(losses.values())) == 3


@pytest.mark.parametrize("panel", ["mlx", "torch"])
def test_dropout_rate_and_scale(panel: str) -> None:
    layers = importlib.import_module(f"{panel}_models.layers")
    make = importlib.import_module({"mlx": "mlx.core", "torch": "torch"}[panel])
    array = make.array if panel == "mlx" else make.tensor
    x, key = array(np.ones((3, 200, 500), np.float32)), array(np.array([7, 8, 9], np.int32))
    kept = np.asarray(layers.dropout(x, 0.25, key))
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.75)}
    assert abs((kept == 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / kept.size)
    np.testing.assert_array_equal(kept[1:], np.asarray(layers.dropout(x[1:], 0.25, key[1:])))


def test_an_official_state_dict_loads_as_it_is(backend: Backend, tiny: Spec) -> None:
    weights = init_weights(tiny)
    official = {**weights, "attn.freqs": np.zeros((1, 1, 1, tiny.d_state), np.float32)}
    built = backend.weights(backend.build(tiny, official))
    assert built.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(built[name], array)


@pytest.mark.parametrize("change, message", [
    (lambda w: w.pop("decoder"), "lacks 'decoder'"),
    (lambda w: w.update(extra=np.zeros(1)), "unknown 'extra'"),
    (lambda w: w.update(encoder=w["encoder"][1:]), "encoder is"),
], ids=["missing", "unknown", "misshapen"])
def test_weights_that_do_not_fit_are_refused(backend: Backend, tiny: Spec, change,
                                             message: str) -> None:
    weights = init_weights(tiny)
    change(weights)
    with pytest.raises(UserError, match=message):
        backend.build(tiny, weights)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(backend: Backend, tiny: Spec, dtype: str) -> None:
    weights, data = init_weights(tiny), tokens(tiny, T=24)
    exact = backend.logits(backend.build(tiny, weights), data)
    half = backend.logits(backend.build(tiny, weights, dtype), data)
    error = np.linalg.norm(half - exact) / np.linalg.norm(exact)
    eps = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    assert eps / 8 < error < 16 * eps


def test_score_scale_keeps_float16_in_range(backend: Backend) -> None:
    """Scores grow with the neurons and the squares of what they say: float16 ends at 65,504."""
    spec = BDH.preset("tiny", mlp_internal_dim_multiplier=64)
    weights = init_weights(spec)
    weights["encoder"] *= 25
    finite = {}
    for scale in ("none", "sqrt", "linear"):
        model = backend.build(spec.replace(score_scale=scale), weights, "float16")
        finite[scale] = bool(np.isfinite(backend.logits(model, tokens(spec, 1, 600))).all())
    assert finite == {"none": False, "sqrt": True, "linear": True}
