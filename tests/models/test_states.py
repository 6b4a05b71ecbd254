"""A decoder's state leaves one panel and goes on in either: every kind of cache, every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specs import Spec, init_weights, spec_type
from specs.backend import BACKENDS, Arrays, Backend, Decoder, Dtype, load_backend
from tests.models.forms import FORMS, spec_of, tokens, weights_of

pytestmark = pytest.mark.needs(*BACKENDS)

BDH = spec_type("bdh").preset("tiny", block_size=64)
SPECS: dict[str, tuple[Spec, str]] = {
    **{form: (spec_of(form), "auto") for form in FORMS},
    "bdh-cache": (BDH, "cache"), "bdh-recurrent": (BDH, "recurrent"),
    "bdh-window": (BDH.replace(window=6), "cache"),
    "bdh-layers": (BDH.replace(share_layers=False, score_scale="sqrt"), "recurrent")}
each_form = pytest.mark.parametrize("form", SPECS)


def weights(form: str) -> Arrays:
    spec, _ = SPECS[form]
    return weights_of(spec) if form in FORMS else init_weights(spec)


def decoder(backend: Backend, form: str, dtype: Dtype = "float32") -> Decoder:
    spec, kind = SPECS[form]
    return backend.decoder(backend.build(spec, weights(form), dtype), 3, 64, kind)


def go_on(reader: Decoder, data: np.ndarray) -> np.ndarray:
    """The logits of one token, of several, and of one in a fork."""
    found = [reader.step(data[:, 0]), reader.prefill(data[:, 1:7])]
    found.append(reader.fork([2, 0]).step(data[[2, 0], 7]))
    return np.concatenate([logits.ravel() for logits in found])


@each_form
@pytest.mark.parametrize("T", [1, 5, 37])
@pytest.mark.parametrize("dtype, eps", [("float32", 2**-24), ("bfloat16", 2**-8)])
def test_the_other_panel_goes_on(backend: Backend, form: str, T: int, dtype: Dtype,
                                 eps: float) -> None:
    """37 tokens are beyond windows, sinks, and what bdh keeps before it writes its state."""
    data = tokens(3, T + 8)
    writer = decoder(backend, form, dtype)
    for piece in np.split(data[:, :T], [T // 2], axis=1):
        if piece.size:
            writer.prefill(piece)
    state, size = writer.state(), writer.state_bytes()
    wanted = go_on(writer, data[:, T:])
    for name in BACKENDS:
        reader = decoder(load_backend(name, "cpu"), form, dtype)
        reader.load_state(state)
        assert (reader.offset, reader.state_bytes()) == (T, size)
        again = reader.state()
        assert again.keys() == state.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(again[key], value)
        found = go_on(reader, data[:, T:])
        room = 200 * eps if dtype == "float32" else 2 * eps
        assert np.linalg.norm(found - wanted) <= room * np.linalg.norm(wanted), name


@each_form
def test_a_state_is_its_own(backend: Backend, form: str) -> None:
    """What its decoder reads later does not change it, nor does what the reader reads."""
    data = tokens(3, 30)
    writer, reader = decoder(backend, form), decoder(backend, form)
    writer.prefill(data[:, :9])
    state = writer.state()
    before: Any = {name: value.copy() for name, value in state.items()}
    writer.prefill(data[:, 9:])
    reader.load_state(state)
    reader.prefill(data[:, 9:])
    for name, value in before.items():
        np.testing.assert_array_equal(state[name], value)
    assert all(value.dtype in (np.float32, np.int64) for value in state.values())


@pytest.mark.parametrize("form", ["gpt-sinks", "mla-deepseek", "retnet-paper", "bdh-recurrent"])
def test_a_state_goes_over_to_another_dtype(backend: Backend, form: str) -> None:
    data = tokens(3, 30)
    writer = decoder(backend, form)
    writer.prefill(data[:, :20])
    state = writer.state()
    wanted = writer.prefill(data[:, 20:])
    for name in BACKENDS:
        reader = decoder(load_backend(name, "cpu"), form, "bfloat16")
        reader.load_state(state)
        assert reader.state_bytes() <= writer.state_bytes()
        found = reader.prefill(data[:, 20:])
        assert np.linalg.norm(found - wanted) < 4 * 2**-8 * np.linalg.norm(wanted)
