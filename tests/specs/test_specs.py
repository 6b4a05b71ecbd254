"""Specs: they check themselves, count what they cost, and draw the same weights everywhere."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

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
        assert array.flags.c_contiguous  # another layout is another rounding, until it is saved
        np.testing.assert_array_equal(array, again[param.name])
        if param.group != "vector" and np.ptp(array):
            assert np.any(array != other[param.name])


def test_a_tensor_has_the_same_values_whatever_else_there_is() -> None:
    kind = spec_type("bdh")
    one, other = (init_weights(kind.preset("tiny", n_layer=n)) for n in (1, 5))
    np.testing.assert_array_equal(one["encoder"], other["encoder"])


def test_initial_weights_are_these_bytes() -> None:
    """A change here would change every run that starts from a seed."""
    first = init_weights(spec_type("bdh").preset("tiny"))["encoder"].ravel()[:3]
    np.testing.assert_allclose(first, [0.00610996, -0.01984348, 0.01840255], rtol=1e-6)


BAD_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("bdh", {"n_layer": 0}, "n_layer = 0 must be at least 1"),
    ("gpt", {"n_layer": 1_000_000}, "n_layer = 1000000 must be at most 1000"),
    ("bdh", {"n_layer": "6"}, "n_layer = '6' must be a whole number"),
    ("bdh", {"n_layer": True}, "n_layer = True must be a whole number"),
    ("bdh", {"dropout": 1.0}, "dropout = 1.0 must be at least 0 and below 1"),
    ("bdh", {"share_layers": 1}, "share_layers = 1 must be true or false"),
    ("bdh", {"score_scale": "root"}, "score_scale = 'root' must be one of none, sqrt, linear"),
    ("bdh", {"window": 1}, "window = 1 must be null or at least 2"),
    ("bdh", {"n_heads": 4}, "bdh has no field 'n_heads'; did you mean 'n_head'?"),
    ("gpt", {"n_kv_head": 3}, "n_kv_head = 3 must be null or a divisor of n_head = 4"),
    ("gpt", {"n_kv_head": 0}, "n_kv_head = 0 must be null or a divisor of n_head = 4"),
    ("gpt", {"n_embd": 30}, "n_embd = 30 must be a multiple of n_head = 4 unless"),
    ("gpt", {"n_embd": 36}, "n_embd = 36 must be such that heads have an even size"),
    ("gpt", {"head_dim": 7}, "head_dim = 7 must be such that heads have an even size"),
    ("gpt", {"head_dim": 0}, "head_dim = 0 must be null or at least 1"),
    ("gpt", {"pos": "alibi"}, "pos = 'alibi' must be one of learned, rope, none"),
    ("gpt", {"mlp": "silu"}, "mlp = 'silu' must be one of gelu, gelu_tanh, swiglu, relu2"),
    ("gpt", {"window": 1}, "window = 1 must be null or at least 2"),
    ("gpt", {"sinks": 4}, "sinks = 4 must be 0, or positive beside a window"),
    ("gpt", {"rope_factor": 0.5}, "rope_factor = 0.5 must be null or at least 1"),
    ("gpt", {"logit_softcap": 0}, "logit_softcap = 0.0 must be null or positive"),
    ("moe", {"n_experts": 0}, "n_experts = 0 must be at least 1"),
    ("moe", {"n_experts_per_tok": 9}, "n_experts_per_tok = 9 must be between 1 and n_experts = 8"),
    ("moe", {"n_experts_per_tok": 0}, "n_experts_per_tok = 0 must be between 1 and n_experts = 8"),
    ("moe", {"expert_mlp": "relu"}, "expert_mlp = 'relu' must be one of swiglu, gelu, silu"),
    ("moe", {"n_shared_experts": -1}, "n_shared_experts = -1 must be 0 or more"),
    ("moe", {"balance": "luck"}, "balance = 'luck' must be one of loss, bias"),
    ("moe", {"aux_loss_coef": -0.1}, "aux_loss_coef = -0.1 must be null, or 0 or more"),
    ("moe", {"router_noise": -1}, "router_noise = -1.0 must be 0 or more"),
    ("moe", {"n_kv_head": 3}, "n_kv_head = 3 must be null or a divisor of n_head = 4"),
    ("moe", {"head_dim": 7}, "head_dim = 7 must be such that heads have an even size"),
    ("mla", {"n_head": 0}, "n_head = 0 must be at least 1"),
    ("mla", {"q_lora_rank": 1}, "q_lora_rank = 1 must be null or at least 2"),
    ("mla", {"kv_lora_rank": 1}, "kv_lora_rank = 1 must be at least 2"),
    ("mla", {"qk_nope_head_dim": -1}, "qk_nope_head_dim = -1 must be at least 0"),
    ("mla", {"qk_rope_head_dim": 5}, "qk_rope_head_dim = 5 must be even and at least 2"),
    ("mla", {"qk_rope_head_dim": 0}, "qk_rope_head_dim = 0 must be even and at least 2"),
    ("mla", {"n_kv_head": 2}, "mla has no field 'n_kv_head'"),
    ("mla", {"window": 4}, "mla has no field 'window'"),
    ("retnet", {"n_embd": 20}, "n_embd = 20 must be a multiple of 2·n_head = 8"),
    ("retnet", {"v_dim_multiplier": 0}, "v_dim_multiplier = 0 must be at least 1"),
    ("retnet", {"d_ff": 0}, "d_ff = 0 must be null or at least 1"),
    ("hyena", {"order": 1}, "order = 1 must be at least 2"),
    ("hyena", {"emb_dim": 4}, "emb_dim = 4 must be odd and at least 3"),
    ("hyena", {"emb_dim": 1}, "emb_dim = 1 must be odd and at least 3"),
    ("hyena", {"short_filter": 1}, "short_filter = 1 must be at least 2"),
    ("hyena", {"filter_w": 0}, "filter_w = 0.0 must be positive"),
    ("hyena", {"block_size": 1}, "block_size = 1 must be at least 2"),
    ("hyena", {"n_head": 4}, "hyena has no field 'n_head'"),
    ("toeplitz", {"n_head": 0}, "n_head = 0 must be at least 1"),
    ("toeplitz", {"n_embd": 30}, "n_embd = 30 must be a multiple of n_head = 4"),
    ("toeplitz", {"d_ff": 0}, "d_ff = 0 must be null or at least 1"),
    ("toeplitz", {"kernel": "relu"}, "kernel = 'relu' must be one of softplus, raw"),
    ("toeplitz", {"norm_eps": 0}, "norm_eps = 0.0 must be positive"),
    ("rwkv7", {"head_dim": 1}, "head_dim = 1 must be at least 2"),
    ("rwkv7", {"n_embd": 96}, "n_embd = 96 must be a multiple of head_dim = 64"),
    ("rwkv7", {"d_ff": 0}, "d_ff = 0 must be null or at least 1"),
    ("rwkv7", {"gate_low_rank_dim": 0}, "gate_low_rank_dim = 0 must be null or at least 1"),
    ("rwkv7", {"norm_eps": 0}, "norm_eps = 0.0 must be positive"),
    ("rwkv7", {"n_head": 4}, "rwkv7 has no field 'n_head'"),
]


@pytest.mark.parametrize("arch, fields, message", BAD_FIELDS, ids=[
    "-".join([arch, *map(str, *fields.items())]) for arch, fields, _ in BAD_FIELDS])
def test_a_bad_field_is_named(arch: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        spec_type(arch).from_dict(fields)


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


@pytest.mark.parametrize("chunks, window", [(2, None), (9, None), (40, None), (40, 3000)])
def test_bdh_counts_the_cheaper_form(chunks: int, window: int | None) -> None:
    """All pairs of tokens, or those of a chunk beside a state, read and written by each token."""
    spec = spec_type("bdh").preset("25m", window=window)
    C, H, N, T = 256, 4, 8192, chunks * 256
    pairs = [min(t, window - 1 if window else t) + 0.5 for t in range(T)]
    quadratic = sum(pairs) / T * 2 * H * (N + C)
    state = 128 * 2 * H * (N + C) + 4 * H * N * C
    least = quadratic if window else min(quadratic, state)
    assert (least == state) == (chunks > 5 and not window)
    per_token = 6 * (6 * C * H * N + least) + 2 * C * 256
    assert spec.flops_per_token(T) == pytest.approx(per_token)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 30),
       st.none() | st.integers(2, 12), st.integers(0, 3), st.sampled_from(["swiglu", "gelu"]))
def test_gpt_counts_its_flops(kv: int, group: int, half: int, T: int, window: int | None,
                              sinks: int, mlp: str) -> None:
    """Against a plain count of every product of a forward pass, one by one."""
    H, D, C, F = kv * group, 2 * half, 24, 17
    spec = spec_type("gpt")(n_embd=C, n_head=H, n_kv_head=kv, head_dim=D, d_ff=F, n_layer=2,
                            mlp=mlp, vocab_size=11, window=window, sinks=sinks if window else 0)
    layer = 0.0
    for t in range(T):
        layer += 2 * C * D * (H + kv + kv) + 2 * H * D * C  # q, k, v, o
        layer += 2 * C * F * (3 if mlp == "swiglu" else 2)
        seen = [s for s in range(t + 1)
                if window is None or s > t - window or s < spec.sinks]  # type: ignore[attr-defined]
        layer += len(seen) * H * (2 * D + 2 * D)  # scores, weighted sum
    total = 2 * layer + T * 2 * C * 11
    assert spec.flops_per_token(T) * T == pytest.approx(total)


@given(st.integers(1, 3), st.none() | st.integers(2, 9), st.integers(2, 9), st.integers(0, 5),
       st.integers(1, 4), st.integers(1, 7), st.integers(1, 30))
def test_mla_counts_its_flops(H: int, rq: int | None, rkv: int, nope: int, half: int, v: int,
                              T: int) -> None:
    """Against a plain count of every product of a forward pass, one by one."""
    C, F, rope = 24, 17, 2 * half
    spec = spec_type("mla")(n_embd=C, n_head=H, q_lora_rank=rq, kv_lora_rank=rkv, d_ff=F,
                            qk_nope_head_dim=nope, qk_rope_head_dim=rope, v_head_dim=v, n_layer=2,
                            vocab_size=11)
    layer, D = 0.0, nope + rope
    for t in range(T):
        layer += 2 * C * H * D if rq is None else 2 * C * rq + 2 * rq * H * D  # q
        layer += 2 * C * (rkv + rope) + 2 * rkv * H * (nope + v)  # latent; keys and values
        layer += (t + 1) * H * (2 * D + 2 * v)  # scores, weighted sum
        layer += 2 * H * v * C + 2 * C * F * 3
    total = 2 * layer + T * 2 * C * 11
    assert spec.flops_per_token(T) * T == pytest.approx(total)


@pytest.mark.parametrize("tied", [True, False])
def test_mla_counts_its_decoding_traffic(tied: bool) -> None:
    """All weights are read but the rows of an untied embedding; latents and rotary keys are."""
    spec = spec_type("mla").preset("tiny", tie_embeddings=tied)
    unread = 0 if tied else 4 * 64 * 32
    assert spec.decode_state_bytes(30) == 4 * 2 * 30 * (16 + 4)
    assert spec.decode_traffic(30) == 4 * spec.param_count() - unread + 4 * 2 * 30 * (16 + 4)


@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": False, "pos": "learned", "bias": True},
                                    {"window": 5, "sinks": 2}], ids=str)
def test_gpt_counts_its_decoding_traffic(fields: dict) -> None:
    """All weights are read but the tables' other rows; the state is read."""
    spec = spec_type("gpt").preset("tiny", **fields)
    sizes = {param.name: 4 * param.size for param in spec.params()}
    unread = sizes.pop("pos_embed.weight", 0)
    if not spec.tie_embeddings:
        unread += sizes["embed.weight"]
    state = spec.decode_state_bytes(30)
    assert spec.decode_traffic(30) == 4 * spec.param_count() - unread + state
    assert state == 4 * 2 * 2 * 2 * 8 * (6 if spec.window else 30)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 30),
       st.integers(1, 5), st.integers(0, 3), st.integers(0, 2), st.booleans(),
       st.sampled_from(["swiglu", "gelu", "silu"]))
def test_moe_counts_its_flops(kv: int, group: int, half: int, T: int, k: int, idle: int,
                              shared: int, tied: bool, mlp: str) -> None:
    """Against a plain count of every product of a forward pass, one by one."""
    H, D, C, F, E = kv * group, 2 * half, 24, 17, k + idle
    spec = spec_type("moe")(
        n_embd=C, n_head=H, n_kv_head=kv, head_dim=D, d_ff=F, n_layer=2, vocab_size=11,
        n_experts=E, n_experts_per_tok=k, expert_mlp=mlp, n_shared_experts=shared,
        tie_embeddings=tied, qk_norm=tied, balance="bias" if tied else "loss")
    layer = 0.0
    for t in range(T):
        layer += 2 * C * D * (H + kv + kv) + 2 * H * D * C  # q, k, v, o
        layer += 2 * C * E + k * 2 * C * F * (3 if mlp == "swiglu" else 2)
        layer += shared * 2 * C * F * 3
        layer += (t + 1) * H * (2 * D + 2 * D)  # scores, weighted sum
    total = 2 * layer + T * 2 * C * 11
    assert spec.flops_per_token(T) * T == pytest.approx(total)


def test_moe_counts_its_decoding_traffic() -> None:
    """The experts that are not chosen are not read."""
    spec = spec_type("moe").preset("tiny", tie_embeddings=False)
    unread = 2 * 2 * 3 * 24 * 32 + spec.vocab_size * spec.n_embd
    state = spec.decode_state_bytes(30)
    assert spec.decode_traffic(30) == 4 * (spec.param_count() - unread) + state
    assert state == 4 * 2 * 2 * 2 * 8 * 30
