"""gpt on both panels: options mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from specs import init_weights, spec_type
from specs.backend import Backend, load_backend
from specs.errors import UserError
from tests.models.forms import close, logits, spec_of, tokens

GPT = spec_type("gpt")
TINY = GPT.preset("tiny", block_size=64)


@pytest.mark.parametrize("preset, count", [
    ("gpt2", 124_439_808), ("medium", 354_823_168), ("llama", 10_818_432), ("qwen3", 11_901_312),
    ("mistral", 9_638_784), ("nanogpt-cpu", 829_696), ("nanogpt-gpu", 10_823_424)])
def test_parameter_count(preset: str, count: int) -> None:
    assert GPT.preset(preset).param_count() == count


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
    backend, spec = load_backend(name, "cpu"), spec_of("gpt-gpt2", block_size=16)
    model = backend.build(spec, init_weights(spec))
    with pytest.raises(UserError, match="17 tokens is too long, this model knows 16 positions"):
        backend.logits(model, tokens(1, 17))
    decoder = backend.decoder(model)
    decoder.prefill(tokens(1, 16))
    with pytest.raises(UserError, match="17 tokens"):
        decoder.step(tokens(1, 1)[:, 0])


def test_llama_3_slows_the_slow_rotations_alone() -> None:
    plain = TINY.replace(head_dim=64, rope_theta=5e5)
    slowed = plain.replace(rope_factor=32.0)
    share = slowed.frequencies() / plain.frequencies()
    turns = 8192 * plain.frequencies() / (2 * np.pi)
    np.testing.assert_allclose(share[turns >= 4], 1)
    np.testing.assert_allclose(share[turns <= 1], 1 / 32)
    assert np.all(np.diff(share) <= 0)
    between = (turns > 1) & (turns < 4)
    assert between.any() and np.all((share[between] > 1 / 32) & (share[between] < 1))
