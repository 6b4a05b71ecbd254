"""mamba2's spec: sizes that go together, and what a model costs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specs import UserError, spec_type

MAMBA2 = spec_type("mamba2")


@pytest.mark.parametrize("preset, count", [
    ("demo", 279_080), ("256x4", 1_927_520), ("12m", 12_026_160), ("130m", 128_989_632)])
def test_parameter_count(preset: str, count: int) -> None:
    assert MAMBA2.preset(preset).param_count() == count


@pytest.mark.parametrize("fields, message", [
    ({"head_dim": 48}, "head_dim = 48 must be a divisor of expand·n_embd = 512"),
    ({"n_groups": 3}, "n_groups = 3 must be a divisor of the 8 heads"),
    ({"n_embd": 1, "head_dim": 1, "n_groups": 2}, "such that a group has at least 2 channels"),
    ({"d_state": 0}, "d_state = 0 must be at least 1"),
    ({"chunk_size": 0}, "chunk_size = 0 must be at least 1"),
    ({"d_conv": 1}, "d_conv = 1 must be at least 2"),
    ({"expand": 1.5}, "expand = 1.5 must be a whole number"),
    ({"time_step_limit": 0.1}, "time_step_limit = 0.1 must be a list of 2 values"),
    ({"time_step_limit": [0, 1, 2]}, "must be a list of 2 values"),
    ({"time_step_limit": [0, "inf"]}, "time_step_limit[1] = 'inf' must be a number"),
    ({"time_step_limit": [None, 1]}, "time_step_limit[0] = None must be a number"),
    ({"time_step_limit": [0.2, 0.1]}, "must be [least, largest] with 0 <= least < largest"),
    ({"n_head": 4}, "mamba2 has no field 'n_head'")], ids=str)
def test_a_bad_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        MAMBA2.from_dict(fields)


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9),
       st.integers(2, 5), st.integers(1, 12), st.integers(1, 40))
def test_flops(P: int, G: int, R: int, N: int, taps: int, chunk: int, T: int) -> None:
    """Against a plain count of every product of a forward pass, one by one."""
    H, V = 2 * G * R, 11
    C = H * P // 2
    spec = MAMBA2.from_dict({"n_embd": C, "head_dim": P, "n_groups": G, "d_state": N,
                             "d_conv": taps, "chunk_size": chunk, "n_layer": 2, "vocab_size": V})
    length: int = spec.chunk_length(T)  # type: ignore[attr-defined]
    assert length <= chunk and -(-T // length) == -(-T // chunk)
    layer = 0
    for t in range(T):
        layer += 2 * C * (2 * H * P + 2 * G * N + H) + 2 * H * P * C  # in and out
        layer += 2 * taps * (H * P + 2 * G * N)  # convolution
        layer += (t % length + 1) * 2 * (G * N + H * P)  # c·b, sum over u
        layer += 2 * H * P * N + 2 * H * P * N  # write, read
    total = 2 * layer + T * 2 * C * V
    assert spec.flops_per_token(T) * T == pytest.approx(total)


@pytest.mark.parametrize("tied", [True, False])
def test_decoding_state_and_traffic(tied: bool) -> None:
    """All weights are read but the rows of an untied embedding; a state that does not grow is
    read and written."""
    spec = MAMBA2.preset("tiny", tie_embeddings=tied)
    unread = 0 if tied else 4 * 64 * 32
    state = 4 * 2 * (64 * 8 + 3 * (64 + 2 * 8))
    assert spec.decode_state_bytes(1) == spec.decode_state_bytes(65536) == state
    assert spec.decode_traffic(30) == 4 * spec.param_count() - unread + 2 * state
