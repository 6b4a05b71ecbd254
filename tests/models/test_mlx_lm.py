"""Our MLX models in mlx_lm's generation loop: with our caches and its own, plain and quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity.cases import lively_weights
from specs import Spec, UserError, init_weights, spec_type
from specs.backend import Dtype, load_backend
from tests.models.test_bdh import close

pytestmark = [pytest.mark.needs("mlx"), pytest.mark.xdist_group("neighbours")]

GPT = spec_type("gpt").preset("tiny", block_size=64, head_dim=32, d_ff=64, tie_embeddings=False)
FORMS: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {"window": 6}, "sinks": {"window": 6, "sinks": 3},
    "gpt2": {"norm": "layernorm", "pos": "learned", "mlp": "gelu_tanh", "bias": True,
             "tie_embeddings": True}}
SPECS: dict[str, Spec] = {
    **{form: GPT.replace(**fields) for form, fields in FORMS.items()},
    "moe": spec_type("moe").preset("tiny", head_dim=32, qk_norm=True, tie_embeddings=False),
    "mla": spec_type("mla").preset("tiny", q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=32,
                                   v_head_dim=8, d_ff=64, tie_embeddings=False),
    "bdh": spec_type("bdh").preset("tiny"), "bdh-window": spec_type("bdh").preset("tiny", window=6),
    "mamba2": spec_type("mamba2").preset("tiny"),
    "hyena": spec_type("hyena").preset("tiny"),
    "retnet": spec_type("retnet").preset("tiny", d_ff=64),
    "rwkv7": spec_type("rwkv7").preset("tiny", tie_embeddings=True)}
PROMPT = np.random.default_rng(5).integers(0, 64, 40).astype(np.int32)
PIECES = [[40], [7, 1, 1, 28, 3], [1] * 40]


def build(spec: Spec, dtype: Dtype = "float32") -> Any:
    """A model whose matrices are large enough for texts that do not repeat themselves."""
    lively = lively_weights(spec, 0)  # for those that begin as zeros
    weights = {name: 10 * (w if w.any() else lively[name]) if w.ndim > 1 else w
               for name, w in init_weights(spec).items()}
    return load_backend("mlx", "cpu").build(spec, weights, dtype)


def generated(model: Any, **options: Any) -> list[int]:
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    steps = generate_step(mx.array(PROMPT), model, mx.default_stream(mx.cpu), max_tokens=16,
                          prefill_step_size=7, **options)
    return [token for token, _ in steps]


def decoded(model: Any) -> list[int]:
    """The same by our own decoder."""
    decoder = load_backend("mlx", "cpu").decoder(model)
    found = [int(decoder.prefill(PROMPT[None])[0, -1].argmax())]
    while len(found) < 16:
        found.append(int(decoder.step(np.array(found[-1:]))[0].argmax()))
    return found


def caches(model: Any, kind: str, *args: Any, **options: Any) -> list[Any]:
    import mlx_lm.models.cache

    return [getattr(mlx_lm.models.cache, kind)(*args, **options) for _ in model.layers]


def forward(model: Any, cache: list[Any] | None = None, pieces: list[int] | None = None
            ) -> np.ndarray:
    import mlx.core as mx

    cuts = np.cumsum(pieces or [])[:-1]
    logits = [model(mx.array(piece), cache) for piece in np.split(PROMPT[None], cuts, axis=1)]
    return np.array(mx.concatenate(logits, axis=1))


@pytest.mark.parametrize("name", SPECS)
def test_greedy_tokens_are_those_of_our_decoder(name: str) -> None:
    model = build(SPECS[name])
    tokens = generated(model)
    assert tokens == decoded(model) and len(set(tokens)) > 3


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("name, kind, size", [
    ("llama", "KVCache", None), ("gpt2", "KVCache", None), ("mistral", "KVCache", None),
    ("moe", "KVCache", None), ("mla", "KVCache", None),
    ("mistral", "RotatingKVCache", 6), ("mistral", "RotatingKVCache", 50),
    ("moe", "RotatingKVCache", 50), ("mla", "RotatingKVCache", 50)])
def test_its_caches_show_what_ours_show(name: str, kind: str, size: int | None,
                                        pieces: list[int]) -> None:
    model = build(SPECS[name])
    cache = caches(model, kind, *([] if size is None else [size]))
    assert close(forward(model, cache, pieces), forward(model), 200)
    assert cache[0].offset == 40


def test_a_rotating_cache_is_a_window() -> None:
    model, windowed = build(SPECS["llama"]), build(SPECS["mistral"])
    tokens = generated(model, prompt_cache=caches(model, "RotatingKVCache", 6))
    assert tokens == decoded(windowed) != decoded(model)


@pytest.mark.parametrize("name", SPECS)
def test_the_loop_can_wait_for_what_a_cache_holds(name: str) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    model = build(SPECS[name])
    cache = model.make_cache()
    forward(model, cache)
    for layer in cache:
        arrays = [value for _, value in tree_flatten(layer.state) if isinstance(value, mx.array)]
        assert sum(array.nbytes for array in arrays) >= layer.nbytes > 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "moe", "mla", "retnet"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized_weights(name: str, dtype: Dtype) -> None:
    import mlx.nn as nn

    model = build(SPECS[name], dtype)
    before = forward(model)
    nn.quantize(model, group_size=32, bits=8)
    assert isinstance(model.layers[1].mixer.o_proj, nn.QuantizedLinear)
    assert isinstance(model.embed, nn.QuantizedEmbedding)
    after = forward(model)
    assert after.dtype == np.float32
    assert 1e-3 < np.linalg.norm(after - before) / np.linalg.norm(before) < 0.1
    assert generated(model) == decoded(model)


@pytest.mark.parametrize("name", ["llama", "moe", "mla"])
@pytest.mark.parametrize("own", [True, False], ids=["our cache", "KVCache"])
def test_quantized_keys_and_values(name: str, own: bool) -> None:
    import mlx.core as mx

    model = build(SPECS[name])
    options = {} if own else {"prompt_cache": caches(model, "KVCache")}
    assert len(generated(model, kv_bits=8, kv_group_size=32, quantized_kv_start=9, **options)) == 16
    cache = model.make_cache() if own else caches(model, "KVCache")
    model(mx.array(PROMPT[None, :20]), cache)
    cache = [layer.to_quantized(group_size=32, bits=8) for layer in cache]
    logits, exact = np.array(model(mx.array(PROMPT[None, 20:]), cache)), forward(model)[:, 20:]
    assert cache[0].offset == 40 and cache[0].bits == 8
    assert 1e-4 < np.linalg.norm(logits - exact) / np.linalg.norm(exact) < 0.05


def test_what_its_caches_cannot_do_is_refused() -> None:
    windowed, sinks = build(SPECS["mistral"]), build(SPECS["sinks"])
    with pytest.raises(UserError, match="kv_bits = 4: .* a window cannot be quantized"):
        generated(windowed, kv_bits=4, quantized_kv_start=0)
    with pytest.raises(UserError, match="sinks = 3: .* leave prompt_cache out"):
        generated(sinks, prompt_cache=caches(sinks, "KVCache"))
    recurrent = build(SPECS["mamba2"])
    with pytest.raises(UserError, match="mamba2 keeps no keys and values: leave prompt_cache out"):
        generated(recurrent, prompt_cache=caches(recurrent, "KVCache"))
