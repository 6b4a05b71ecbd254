"""mla on both panels: both ways to attend are one function, and cost what the spec says."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specs import init_weights, spec_type
from specs.backend import Backend
from specs.base import Spec
from tests.models.forms import FORMS, close, logits, spec_of, tokens

MLA = spec_type("mla")
MLA_FORMS = [form for form in FORMS if form.startswith("mla")]
each_form = pytest.mark.parametrize("form", MLA_FORMS)
each_panel = pytest.mark.parametrize("panel", ["mlx", "torch"])


@pytest.mark.parametrize("preset, count", [
    ("demo", 430_240), ("deepseek-v2", 10_230_528), ("mla-512x3", 36_281_024),
    ("mla-512x12", 69_625_088)])
def test_parameter_count(preset: str, count: int) -> None:
    assert MLA.preset(preset).param_count() == count


def test_the_latent_cache_is_a_fraction_of_keys_and_values() -> None:
    spec = MLA.preset("mla-512x12")
    heads = spec_type("gpt")(n_layer=12, n_embd=512, n_head=8, vocab_size=49152)
    assert spec.decode_state_bytes(1) == 4 * 12 * 192
    assert heads.decode_state_bytes(1) == 4 * 12 * 1024
    mixer = [param for param in spec.params() if param.name.startswith("layers.0.mixer.")]
    assert sum(param.size for param in mixer) == 558_144


def attend(panel: str, spec: Spec, form: str, T: int, S: int) -> dict[str, np.ndarray]:
    """The output for the last T of S tokens, and a sum's gradient by each input and kv_b_proj."""
    rng = np.random.default_rng(S)
    made = importlib.import_module(f"{panel}_models.mla").LatentAttention(spec)
    H, nope, rope = spec.n_head, spec.qk_nope_head_dim, spec.qk_rope_head_dim  # type: ignore
    rkv, v = spec.kv_lora_rank, spec.v_head_dim  # type: ignore[attr-defined]
    shapes = {"q_c": (2, H, T, nope), "q_r": (2, H, T, rope), "c": (2, 1, S, rkv),
              "k_r": (2, 1, S, rope), "weight": (H * (nope + v), rkv), "ahead": (2, H, T, v)}
    given = [rng.standard_normal(shape).astype(np.float32) for shape in shapes.values()]
    mask = np.tri(T, S, S - T, dtype=bool)
    function = mlx_sum if panel == "mlx" else torch_sum
    output, grads = function(made, form, mask, given)
    return {"output": output, **dict(zip(shapes, grads, strict=True))}


def mlx_sum(made: Any, form: str, mask: np.ndarray,
            given: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    import mlx.core as mx

    def total(q_c: Any, q_r: Any, c: Any, k_r: Any, weight: Any, ahead: Any) -> Any:
        made.kv_b_proj.weight = weight
        y = getattr(made, form)(q_c, q_r, c, k_r, mx.array(mask))
        return (y * ahead).sum(), y

    (_, y), grads = mx.value_and_grad(total, argnums=range(5))(*map(mx.array, given))
    return np.array(y), [np.array(grad) for grad in (*grads, y)]


def torch_sum(made: Any, form: str, mask: np.ndarray,
              given: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    import torch

    *inputs, weight, ahead = map(torch.tensor, given)
    made.kv_b_proj.weight = torch.nn.Parameter(weight)
    inputs = [x.requires_grad_() for x in inputs]
    y = getattr(made, form)(*inputs, torch.tensor(mask))
    grads = torch.autograd.grad((y * ahead).sum(), [*inputs, made.kv_b_proj.weight],
                                materialize_grads=True)
    return y.numpy(force=True), [grad.numpy() for grad in (*grads, y.detach())]


@each_panel
@each_form
@pytest.mark.parametrize("T, S", [(1, 1), (1, 30), (7, 7), (7, 30)])
def test_absorbed_is_materialised(panel: str, form: str, T: int, S: int) -> None:
    """Values, and the gradients at queries, latents, rotary keys and kv_b_proj."""
    spec = spec_of(form)
    plain, fast = (attend(panel, spec, way, T, S) for way in ("materialised", "absorbed"))
    size = np.linalg.norm(plain["output"])
    for name, value in plain.items():
        room = 64 * 2**-24 * max(np.linalg.norm(value), size)
        assert np.linalg.norm(fast[name] - value) <= room, name


@each_form
@pytest.mark.parametrize("way", [True, False], ids=["absorbed", "materialised"])
def test_decoding_is_exact_whichever_way(backend: Backend, form: str, way: bool,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(form)
    data, weights = tokens(3, 40), init_weights(spec)
    whole = backend.logits(backend.build(spec, weights), data)
    monkeypatch.setattr(type(spec), "absorbs", lambda self, T, S: way and T < S)
    decoder = backend.decoder(backend.build(spec, weights), 3)
    pieces = np.split(data, [1, 12, 13, 20], axis=1)
    assert close(np.concatenate([decoder.prefill(piece) for piece in pieces], 1), whole, 200)


@given(st.integers(1, 600), st.integers(0, 5000), st.sampled_from(["deepseek-v2", "mla-512x3"]))
def test_the_cheaper_way_is_taken(T: int, before: int, preset: str) -> None:
    """Against a plain count of the multiplications of both."""
    spec: Any = MLA.preset(preset)
    S, rkv, nope, v = T + before, spec.kv_lora_rank, spec.qk_nope_head_dim, spec.v_head_dim
    rope = spec.qk_rope_head_dim
    materialised = S * rkv * (nope + v) + T * S * (nope + rope) + T * S * v
    absorbed = (T * nope * rkv + T * S * rope + (T * S * rkv if nope else 0) + T * S * rkv
                + T * rkv * v)
    assert spec.absorbs(T, S) == (before > 0 and absorbed < materialised)


def test_prompts_are_materialised_and_tokens_absorbed() -> None:
    for preset, few in (("mla-512x3", 127), ("deepseek-v2", 128)):
        spec: Any = MLA.preset(preset)
        assert not spec.absorbs(512, 512) and not spec.absorbs(512, 16384)
        assert spec.absorbs(1, 2) and spec.absorbs(few - 20, 16384)
        assert not spec.absorbs(few + 10, 10**9)


@each_panel
def test_pairs_are_rotated(panel: str) -> None:
    """Against complex numbers; bfloat16 goes in, float32 comes out."""
    layers = importlib.import_module(f"{panel}_models.layers")
    framework = importlib.import_module({"mlx": "mlx.core", "torch": "torch"}[panel])
    array = framework.array if panel == "mlx" else framework.tensor
    spec: Any = MLA.preset("tiny", qk_rope_head_dim=6)
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)
    angle = spec.rotary(1000, 5)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    wanted = np.stack([turned.real, turned.imag], -1).reshape(x.shape)
    cos, sin = (array(f(angle).astype(np.float32)) for f in (np.cos, np.sin))
    assert close(np.asarray(layers.PairRotary()(array(x), cos, sin)), wanted, 4)
    half = array(x).astype(framework.bfloat16) if panel == "mlx" else array(x).bfloat16()
    assert layers.PairRotary()(half, cos, sin).dtype == framework.float32


@each_panel
@pytest.mark.parametrize("mask", [None, "causal", "given"])
@pytest.mark.parametrize("D, Dv", [(12, 4), (8, 8), (4, 12)])
def test_values_may_be_narrower_or_wider_than_keys(panel: str, D: int, Dv: int,
                                                   mask: str | None) -> None:
    """Attention against its definition in float64."""
    sdpa = importlib.import_module(f"{panel}_models.attention").sdpa
    framework = importlib.import_module({"mlx": "mlx.core", "torch": "torch"}[panel])
    array = framework.array if panel == "mlx" else framework.tensor
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, 9, size)).astype(np.float32) for size in (D, D, Dv))
    seen = np.ones((9, 9), bool) if mask is None else np.tri(9, dtype=bool)
    scores = np.where(seen, q.astype(float) @ k.swapaxes(-1, -2) / D**0.5, -np.inf)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = share / share.sum(-1, keepdims=True) @ v
    found = sdpa(*map(array, (q, k, v)), array(seen) if mask == "given" else mask)
    assert close(np.asarray(found), wanted, 16)


def test_heads_without_content_are_those_whose_content_is_zero(backend: Backend) -> None:
    """nope = 0 leaves the rotary scores alone, but for their scale."""
    none = spec_of("mla-nope0", qk_rope_head_dim=12, attn_bias=False)
    some = none.replace(qk_nope_head_dim=4)
    H, rope, v = 4, 12, 8
    weights, wide = init_weights(none), init_weights(some)
    for name in weights:
        if name.endswith("q_b_proj.weight"):
            rows = weights[name].reshape(H, rope, -1) * np.float32((16 / 12) ** 0.5)
            wide[name] = np.concatenate([0 * rows[:, :4], rows], 1).reshape(H * 16, -1)
        elif name.endswith("kv_b_proj.weight"):
            rows = weights[name].reshape(H, v, -1)
            wide[name] = np.concatenate([rows[:, :4], rows], 1).reshape(H * 12, -1)
        else:
            wide[name] = weights[name]
    assert close(logits(backend, some, wide), logits(backend, none, weights))
