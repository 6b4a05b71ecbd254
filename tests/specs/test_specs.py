"""Specs: they check themselves, count what they cost, and draw the same weights everywhere."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specs import UserError, architectures, init_weights, spec_type

ARCHS = architectures()


@pytest.mark.parametrize("arch", ARCHS)
def test_presets_are_valid_and_survive_json(arch: str) -> None:
    kind = spec_type(arch)
    assert {"tiny", "demo"} <= kind.presets.keys()
    for name in kind.presets:
        spec = kind.preset(name)
        assert kind.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
        assert spec.arch == arch


@pytest.mark.parametrize("arch", ARCHS)
def test_initial_weights_fill_the_table(arch: str) -> None:
    spec = spec_type(arch).preset("tiny")
    weights, again, other = init_weights(spec), init_weights(spec), init_weights(spec, seed=1)
    assert sum(array.size for array in weights.values()) == spec.param_count()
    for param in spec.params():
        array = weights[param.name]
        assert array.shape == param.shape and array.dtype == np.float32
        np.testing.assert_array_equal(array, again[param.name])
        if param.group != "vector":
            assert np.any(array != other[param.name])


def test_a_tensor_has_the_same_values_whatever_else_there_is() -> None:
    kind = spec_type("bdh")
    one, other = (init_weights(kind.preset("tiny", n_layer=n)) for n in (1, 5))
    np.testing.assert_array_equal(one["encoder"], other["encoder"])


def test_initial_weights_are_these_bytes() -> None:
    """A change here would change every run that starts from a seed."""
    first = init_weights(spec_type("bdh").preset("tiny"))["encoder"].ravel()[:3]
    np.testing.assert_allclose(first, [0.00610996, -0.01984348, 0.01840255], rtol=1e-6)


@pytest.mark.parametrize("fields, message", [
    ({"n_layer": 0}, "bdh: n_layer = 0 must be at least 1"),
    ({"n_layer": "6"}, "n_layer = '6' must be a whole number"),
    ({"n_layer": True}, "n_layer = True must be a whole number"),
    ({"dropout": 1.0}, "bdh: dropout = 1.0 must be at least 0 and below 1"),
    ({"share_layers": 1}, "share_layers = 1 must be true or false"),
    ({"score_scale": "root"}, "score_scale = 'root' must be one of none, sqrt, linear"),
    ({"window": 1}, "bdh: window = 1 must be null or at least 2"),
    ({"n_heads": 4}, "bdh has no field 'n_heads'; did you mean 'n_head'?"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_a_bad_field_is_named(fields: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        spec_type("bdh").from_dict(fields)
    assert str(error.value).startswith(message)


def test_a_spec_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec_type("bdh")().n_layer = 3  # type: ignore[misc]


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 5), st.integers(1, 40))
def test_bdh_counts_its_flops(C: int, H: int, half: int, T: int) -> None:
    """Against a plain count of every product of a forward pass, one by one."""
    spec = spec_type("bdh")(n_embd=2 * C * H, n_head=H, mlp_internal_dim_multiplier=half,
                            n_layer=2, vocab_size=11)
    width, N = spec.n_embd, spec.d_state
    layer = 0.0
    for t in range(T):
        layer += 3 * 2 * width * H * N  # encoder, encoder_v, decoder
        layer += (t + 0.5) * 2 * H * (N + width)  # scores of t earlier tokens (half of itself)
    total = 2 * layer + T * 2 * width * 11
    assert spec.flops_per_token(T) * T == pytest.approx(total)
