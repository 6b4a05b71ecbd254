"""hyena on both panels: its filters are the paper's, long convolutions are one function by all
pairs, by spectra and in decoding, and cost what the spec says."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specs import init_weights, spec_type
from specs.backend import BACKENDS, Backend, Batch, load_backend
from specs.online import BLOCK, KINDS
from tests.models.forms import (
    FORMS,
    assert_nothing_later_is_seen,
    close,
    spec_of,
    tokens,
    weights_of,
)

HYENA: Any = spec_type("hyena")
each_form = pytest.mark.parametrize("form", [form for form in FORMS if "hyena" in form])
each_kind = pytest.mark.parametrize("kind", KINDS)


def all_by(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long convolutions of any length in one of their forms."""
    for name in BACKENDS:
        module = importlib.import_module(f"{name}_models.longconv")
        monkeypatch.setattr(module, "fastest", lambda *size: form)


@pytest.mark.parametrize("preset, count", [
    ("demo", 598_912), ("10m", 9_891_072), ("125m", 124_940_160)])
def test_parameter_count(preset: str, count: int) -> None:
    assert HYENA.preset(preset).param_count() == count


def test_initial_weights_are_as_published() -> None:
    spec = HYENA(n_embd=96, n_layer=3, order=3, short_filter=4, filter_w=14, tie_embeddings=False)
    weights = init_weights(spec)
    layer = {name.removeprefix("layers.1."): w for name, w in weights.items()}
    for name in ("mixer.in_proj.weight", "mlp.up_proj.weight", "mixer.filter.l2.weight",
                 "mixer.filter.out.weight", "embed.weight", "lm_head.weight"):
        assert layer[name].std() == pytest.approx(0.02, rel=0.05), name
    for name in ("mixer.out_proj.weight", "mlp.down_proj.weight"):
        assert layer[name].std() == pytest.approx(0.02 / 6**0.5, rel=0.02), name
    for name in ("conv_weight", "conv_bias"):
        taps = layer[f"mixer.{name}"]
        assert 0.49 < np.abs(taps).max() <= 0.5
        assert taps.std() == pytest.approx(3**-0.5 / 2, rel=0.1)
    assert layer["mixer.filter_bias"].std() == pytest.approx(1, rel=0.1)
    assert np.all(layer["mixer.filter.freq"] == 14)
    assert not any(w.any() for name, w in weights.items() if name.endswith("_proj.bias"))


def test_muon_takes_what_every_token_meets() -> None:
    spec = HYENA.preset("tiny")
    hidden = {p.name.removeprefix("layers.0.") for p in spec.params()
              if p.group == "hidden" and "layers.0" in p.name}
    assert hidden == {f"{name}_proj.weight" for name in ("mixer.in", "mixer.out", "mlp.up",
                                                         "mlp.down")}
    assert not any(p.decays for p in spec.params() if ".filter" in p.name)


def test_features_and_decays_are_those_of_the_paper() -> None:
    spec = HYENA(block_size=50, emb_dim=7, order=3, n_embd=4)
    features, decay = spec.features(), spec.decay()
    assert features.shape == (50, 7) and decay.shape == (50, 8)
    assert features.dtype == decay.dtype == np.float64
    assert features[0].tolist() == [0, 1, 1, 1, 0, 0, 0] and features[49, 0] == 1
    for k, f in enumerate([1e-4, (1e-4 + 2) / 2, 2]):
        omega = 2 * np.pi * 13 / 50
        np.testing.assert_allclose(features[13, [1 + k, 4 + k]],
                                   [np.cos(f * omega), -np.sin(f * omega)], rtol=1e-12)
    assert np.all(decay[0] == 1)
    assert decay[49, 0] == pytest.approx(0.01 ** (1 / 1.5))
    assert decay[49, 7] == pytest.approx(0.01 ** (1 / 0.3))
    rates = np.log(decay[1])
    np.testing.assert_allclose(np.diff(rates), np.diff(rates)[0], rtol=1e-9)
    assert HYENA(emb_dim=3, block_size=9).features()[4, 1] == np.cos(1e-4 * np.pi * 8 / 9)


@each_form
@pytest.mark.parametrize("T", [1, 2, 33, 60])
def test_gradients_through_spectra_are_those_through_all_pairs(
        backend: Backend, form: str, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, data = spec_of(form, dropout=0.2), tokens(3, T)
    batch, found = Batch(data, data, np.array([3, -8, 99], np.int32)), []
    for way in ("direct", "fft"):
        all_by(way, monkeypatch)
        found.append(backend.loss_and_grads(backend.build(spec, weights_of(spec)), batch))
    (loss, grads), (other, other_grads) = found
    assert other == pytest.approx(loss, rel=1e-6)
    whole = np.sqrt(sum(np.linalg.norm(grad) ** 2 for grad in grads.values()))
    for name, grad in grads.items():
        assert np.linalg.norm(other_grads[name] - grad) <= 16 * 2**-24 * whole, name


@each_form
def test_spectra_show_what_follows_in_rounding_alone(backend: Backend, form: str,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    all_by("fft", monkeypatch)
    spec, data = spec_of(form), tokens(2, 60)
    model = backend.build(spec, weights_of(spec))
    before, data[:, 41:] = backend.logits(model, data), 7
    assert close(backend.logits(model, data)[:, :41], before[:, :41], 32)
    all_by("direct", monkeypatch)
    assert_nothing_later_is_seen(backend, spec, "float32", data, (1, 59))


@each_form
@each_kind
@pytest.mark.parametrize("pieces", [[200], [1] * 200, [BLOCK, 1, 2 * BLOCK - 3, 1], [150, 49]],
                         ids=["whole", "tokens", "blocks", "two"])
def test_decoding_past_whole_blocks(backend: Backend, form: str, kind: str,
                                    pieces: list[int]) -> None:
    """And the state after each piece is what the spec counts; another panel goes on from it."""
    spec: Any = spec_of(form, block_size=200)
    model, data = backend.build(spec, weights_of(spec)), tokens(2, sum(pieces))
    decoder, found = backend.decoder(model, 2, state=kind), []
    for piece in np.split(data, np.cumsum(pieces)[:-1], axis=1):
        found.append(decoder.prefill(piece))
        assert decoder.state_bytes() == 2 * spec.decode_state_bytes(decoder.offset, kind)
        if decoder.offset == 150:
            other = load_backend("torch" if backend.name == "mlx" else "mlx", "cpu")
            reader = other.decoder(other.build(spec, weights_of(spec)), 2, state=kind)
            reader.load_state(decoder.state())
            decoder = reader
    assert close(np.concatenate(found, 1), backend.logits(model, data), 200)


@pytest.mark.parametrize("order", [2, 3])
def test_the_filters_are_computed_once(backend: Backend, order: int) -> None:
    """For a pass over a batch, and for all tokens of a decoding, its forks too."""
    spec, data = spec_of("hyena-paper", order=order), tokens(3, 20)
    model = backend.build(spec, weights_of(spec))

    def network(calls: list[Any]) -> list[str]:
        return [call.path for call in calls if call.path.endswith(".filter")]

    once = [f"layers.{i}.mixer.filter" for i in range(2)]
    assert network(backend.trace(model, Batch(data, data))) == once
    for kind in KINDS:
        decoder = backend.decoder(model, 3, state=kind)
        assert network(decoder.trace(data[:, :7])) == once
        assert network(decoder.trace(data[:, 7:8])) == []
        assert network(decoder.fork([1]).trace(data[:1, 8:9])) == []


def test_a_filter_is_a_function_of_the_distance_alone(backend: Backend) -> None:
    """In positions of the block, whatever the length of the text."""
    spec, data = spec_of("hyena-order3"), tokens(2, 40)
    model = backend.build(spec, weights_of(spec))
    assert close(backend.logits(model, data[:, :9]), backend.logits(model, data)[:, :9], 16)
    wider = backend.build(spec.replace(block_size=128), weights_of(spec))
    assert not close(backend.logits(wider, data), backend.logits(model, data), 2**10)


@given(st.integers(1, 20), st.integers(2, 4), st.integers(2, 5), st.integers(1, 300))
def test_flops_are_counted(C: int, order: int, taps: int, T: int) -> None:
    """Against a plain count of every product of a forward pass, one by one."""
    spec = HYENA(n_embd=C, order=order, short_filter=taps, d_ff=17, n_layer=3, vocab_size=11)
    layer = pairs = 0.0
    for t in range(T):
        layer += 2 * C * (order + 1) * C + 2 * C * C + 2 * 2 * C * 17
        layer += 2 * taps * (order + 1) * C
        pairs += 2 * (t + 1)
    spectra = 3 * 2.5 * (2 * T) * np.log2(2 * T) + 6 * (T + 1)
    layer += (order - 1) * C * min(pairs, spectra)
    assert spec.flops_per_token(T) * T == pytest.approx(3 * layer + T * 2 * C * 11)


def test_decoding_traffic_is_counted() -> None:
    """All weights but the networks of the filters; the last inputs of the short convolution are
    read and written; each row that a long one moves, and its taps."""
    spec = HYENA.preset("tiny")
    network = 2 * (16 * 5 + 16 + 2 * (16 * 16 + 16) + 16 + 32 * 16)
    weights = 4 * (spec.param_count() - network)
    short = 2 * 4 * 2 * 2 * 96
    assert spec.decode_traffic(500, "cache") == weights + short + 2 * 4 * 2 * 32 * 500
    online = spec.decode_traffic(500, "online")
    assert weights + short < online < spec.decode_traffic(100, "cache")
