"""Known mistakes of ports of Llama, Gemma, GPT-2 and Mistral, planted in one panel of gpt."""

from __future__ import annotations

import pytest

from parity.locate import MODEL
from specs.backend import Backend
from tests.parity.planting import Fault

GPT, FRAME = "mlx_models.gpt", "mlx_models.model"
LAYERS, CACHE = "mlx_models.layers", "mlx_models.cache"
ATTENTION = "mlx_models.attention"
TORCH_LAYERS, TORCH_CACHE = "torch_models.layers", "torch_models.cache"
MIXER, MLP, ROTARY, NORM = "layers.0.mixer", "layers.0.mlp", "layers.0.mixer.rotary", (
    "layers.0.mixer_norm")
FIRST, FORWARD = ("parameters",), ("activations", "logits")
WINDOW = {"window": 5}
LONG = {"window": 7, "sinks": 3, "block_size": 264}  # rows are dropped after 256

FAULTS = [
    Fault("RMSNorm eps", LAYERS, "RMSNorm.__call__", "self.eps)", "1e-6)",
          "activations", NORM, FIRST),
    Fault("RMSNorm eps in torch, whose referee follows", TORCH_LAYERS, "RMSNorm.forward",
          "self.eps)", "1e-6)", "activations", NORM, FIRST),
    Fault("RMSNorm weight counted from one", LAYERS, "RMSNorm.__call__",
          "self.weight", "1 + self.weight", "activations", NORM, FIRST),
    Fault("LayerNorm bias forgotten", LAYERS, "LayerNorm.__call__", "self.bias", "None",
          "activations", NORM, FIRST, spec={"norm": "layernorm"}),
    Fault("norm in float16", LAYERS, "RMSNorm.__call__", "upcast(x)", "x.astype(mx.float16)",
          "activations", NORM, FIRST),
    Fault("embedding scaled", FRAME, "LanguageModel.embedded", "self.embed(tokens)",
          "self.embed(tokens) * 4", "activations", MODEL, FIRST),
    Fault("RoPE of pairs for halves", LAYERS, "Rotary.__call__",
          "mx.split(x, 2, axis=-1)", "x[..., 0::2], x[..., 1::2]", "activations", ROTARY, FIRST),
    Fault("RoPE turns back", LAYERS, "Rotary.__call__",
          "x1 * cos - x2 * sin, x2 * cos + x1 * sin", "x1 * cos + x2 * sin, x2 * cos - x1 * sin",
          "activations", ROTARY, FIRST),
    Fault("RoPE of positions scaled", LAYERS, "RotaryTable.__call__",
          "angle = self", "angle = 0.5 * self", "activations", MODEL, FIRST),
    Fault("all-ones mask added as zeros", ATTENTION, "sdpa",
          "mask=mask", "mask=mx.zeros((q.shape[2], k.shape[2]))", "activations", MIXER, FIRST),
    Fault("mask off by one", ATTENTION, "sdpa", "mask=mask",
          "mask=mx.tri(q.shape[2], k.shape[2], 1, mx.bool_)", "activations", MIXER, FIRST),
    Fault("window off by one", CACHE, "KeyValueCache.make_mask",
          "s > t - self.window", "s >= t - self.window", "activations", MODEL, FIRST,
          spec=WINDOW),
    Fault("sinks forgotten", CACHE, "KeyValueCache.make_mask",
          " | (s < self.sinks)", "", "activations", MODEL, FIRST, spec={**WINDOW, "sinks": 2}),
    Fault("heads tiled, not repeated", ATTENTION, "sdpa", "q, k, v, scale",
          "q, *(mx.tile(y, (1, q.shape[1] // k.shape[1], 1, 1)) for y in (k, v)), scale",
          "activations", MIXER, FIRST),
    Fault("attention scale", ATTENTION, "sdpa", "** -0.5", "** -1.0",
          "activations", MIXER, FIRST),
    Fault("scores in float16", ATTENTION, "sdpa", "q, k, v, scale",
          "q.astype(mx.float16), k.astype(mx.float16), v.astype(mx.float16), scale",
          "activations", MIXER, FIRST),
    Fault("q and k take each other's norm", GPT, "Attention.__call__",
          "self.q_norm(q), self.k_norm(k)", "self.k_norm(q), self.q_norm(k)",
          "activations", MIXER, FIRST, spec={"qk_norm": True}),
    Fault("biases forgotten", LAYERS, "Linear.__call__", '"bias" in self', "False",
          "activations", "layers.0.mixer.q_proj", FIRST, spec={"bias": True}),
    Fault("gelu for gelu_tanh", GPT, "MLP.__call__",
          "h = self.activation(self.up_proj(x))", "h = nn.gelu(self.up_proj(x))",
          "activations", MLP, FIRST, spec={"mlp": "gelu_tanh"}),
    Fault("gate and up swapped", GPT, "MLP.__call__",
          "self.activation(self.gate_proj(x)) * self.up_proj(x)",
          "self.gate_proj(x) * self.activation(self.up_proj(x))", "activations", MLP, FIRST),
    Fault("tied head dropped", FRAME, "LanguageModel.head", "self.embed.as_linear(x)",
          "x @ mx.zeros_like(self.embed.weight).T", "logits", MODEL, ("activations",)),
    Fault("tied head gives no gradient", FRAME, "LanguageModel.head", "self.embed.as_linear(x)",
          "x @ mx.stop_gradient(self.embed.weight).T", "gradients", good=("loss", *FORWARD)),
    Fault("logits without their cap", GPT, "Model.head", "cap is None", "True",
          "logits", MODEL, ("activations",), spec={"logit_softcap": 1.0}),
    Fault("no gradient through the keys", ATTENTION, "sdpa", "q, k, v, scale",
          "q, mx.stop_gradient(k), v, scale", "single-step", "layers.1.mixer", FORWARD),
    Fault("one dropout mask for two places", GPT, "Block.__call__", "fold(key, 1)",
          "fold(key, 0)", "gradients", "layers.0", ("single-step", "loss", *FORWARD)),
    Fault("cache offset of one", CACHE, "KeyValueCache.update_and_fetch",
          "+= k.shape[-2]", "+= k.shape[-2] + 1", "decoding", MODEL, FORWARD),
    Fault("cache offset of one in torch", TORCH_CACHE, "KeyValueCache.update_and_fetch",
          "+= k.shape[-2]", "+= k.shape[-2] + 1", "decoding", MODEL, FORWARD, "torch"),
    Fault("cached positions begin anew", GPT, "Model.context",
          "self._rotary(start, ", "self._rotary(0, ", "decoding", MODEL, FORWARD),
    Fault("learned positions begin anew", GPT, "Model.embedded",
          "mx.arange(start, start + tokens.shape[1])", "mx.arange(tokens.shape[1])",
          "decoding", "pos_embed", FORWARD, spec={"pos": "learned"}),
    Fault("later rows not rotated, one token at a time", LAYERS, "Rotary.__call__",
          "x2 * cos + x1 * sin]", "x2 * cos + x1 * sin] if x.shape[2] > 1 else [mx.concatenate("
          "[(x1 * cos - x2 * sin)[:1], x1[1:]]), mx.concatenate([(x2 * cos + x1 * sin)[:1], "
          "x2[1:]])]", "decoding", ROTARY, FORWARD),
    Fault("causal from the first key in torch", TORCH_CACHE, "KeyValueCache.make_mask",
          "if start == 0", "if T > 1", "decoding", MIXER, FORWARD, "torch"),
    Fault("sinks dropped with the rest", CACHE, "Rows.held", "min(self.first, self.needed)", "0",
          "decoding", MIXER, FORWARD, spec=LONG),
    Fault("rows keep their places when some are dropped", CACHE, "KeyValueCache.make_mask",
          "s + dropped", "s", "decoding", MIXER, FORWARD, spec=LONG),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught_and_located(fault: Fault, panels: dict[str, Backend],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    fault.is_caught_and_located("gpt", panels, monkeypatch)
