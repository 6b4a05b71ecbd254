"""Known mistakes of ports of DeepSeek's latent attention, planted in one panel of mla."""

from __future__ import annotations

import pytest

from parity.locate import MODEL
from specs.backend import Backend
from tests.parity.planting import Fault

MLA, LAYERS, CACHE = "mlx_models.mla", "mlx_models.layers", "mlx_models.cache"
TORCH = "torch_models.mla"
MIXER, ROTARY = "layers.0.mixer", "layers.0.mixer.rotary"
FIRST, FORWARD = ("parameters",), ("activations", "logits")
CALL, PLAIN, ABSORBED = (f"LatentAttention.{name}" for name in (
    "__call__", "materialised", "absorbed"))

FAULTS = [
    Fault("RoPE of halves for pairs", LAYERS, "PairRotary.__call__",
          "x[..., 0::2], x[..., 1::2]", "mx.split(x, 2, axis=-1)", "activations", ROTARY, FIRST),
    Fault("pairs left as halves", LAYERS, "PairRotary.__call__",
          "mx.stack(pairs, axis=-1).reshape(x.shape)", "mx.concatenate(pairs, axis=-1)",
          "activations", ROTARY, FIRST),
    Fault("rotary entries first in the query", MLA, CALL,
          "q[..., : self.nope], q[..., self.nope :]", "q[..., -self.nope :], q[..., : -self.nope]",
          "activations", MIXER, FIRST),
    Fault("rotary key first, then the latent", MLA, CALL,
          "kv[..., : self.rank], kv[..., self.rank :]",
          "kv[..., -self.rank :], kv[..., : -self.rank]", "activations", MIXER, FIRST),
    Fault("rotary key not rotated", MLA, CALL, "r[:, :-1], r[:, -1:]", "r[:, :-1], k_r",
          "activations", MIXER, FIRST),
    Fault("latent without its norm", MLA, CALL, "self.kv_a_norm(c)", "c",
          "activations", MIXER, FIRST),
    Fault("latent's norm in float16", MLA, CALL, "self.kv_a_norm(c)",
          "self.kv_a_norm(c.astype(mx.float16))", "activations", MIXER, FIRST),
    Fault("query's bottleneck without its norm", MLA, "LatentAttention.query",
          "self.q_a_norm(self.q_a_proj(x))", "self.q_a_proj(x)",
          "activations", MIXER, FIRST),
    Fault("biases forgotten", LAYERS, "Linear.__call__", '"bias" in self', "False",
          "activations", "layers.0.mixer.q_a_proj", FIRST, spec={"attn_bias": True}),
    Fault("values first in kv_b", MLA, PLAIN,
          "kv[..., : self.nope], kv[..., self.nope :]",
          "kv[..., -self.nope :], kv[..., : -self.nope]", "activations", MIXER, FIRST),
    Fault("scale of the content alone", MLA, PLAIN, "attention(q, k",
          "attention(q * (q.shape[-1] / self.nope) ** 0.5, k", "activations", MIXER, FIRST),
    Fault("content for rotary in the keys", MLA, PLAIN, "(k_c, k_r))", "(k_r, k_c))",
          "activations", MIXER, FIRST),
    Fault("padding cut from the front, in torch, whose referee follows",
          "torch_models.attention", "sdpa",
          "[..., :-spare]", "[..., spare:]", "activations", MIXER, FIRST),
    Fault("no gradient through the shared key", MLA, PLAIN, "mx.broadcast_to(k_r",
          "mx.broadcast_to(mx.stop_gradient(k_r)", "single-step", "layers.1.mixer", FORWARD),
    Fault("no gradient through the latent", MLA, PLAIN, "self.kv_b_proj(c[:, 0])",
          "self.kv_b_proj(mx.stop_gradient(c[:, 0]))", "single-step", "layers.1.mixer", FORWARD),
    Fault("absorbed: scale of the latent", MLA, ABSORBED, "* self.scale", "* self.rank**-0.5",
          "decoding", MIXER, FORWARD),
    Fault("absorbed: key part for value part in torch", TORCH, ABSORBED,
          "weight[:, self.nope :]", "weight[:, : -self.nope]", "decoding", MIXER, FORWARD,
          "torch"),
    Fault("absorbed: rotary scores alone", MLA, ABSORBED, "if self.nope:", "if False:",
          "decoding", MIXER, FORWARD),
    Fault("absorbed: no mask", MLA, ABSORBED, "if mask is not None:", "if False:",
          "decoding", MIXER, FORWARD),
    Fault("absorbed: tokens for heads", MLA, ABSORBED, "@ c).reshape(B, H, T, -1)",
          "@ c).reshape(B, T, H, -1).swapaxes(1, 2)", "decoding", MIXER, FORWARD),
    Fault("absorbed: softmax in float16", MLA, ABSORBED, "upcast(scores)",
          "scores.astype(mx.float16)", "decoding", MIXER, FORWARD),
    Fault("one rotary key for all tokens of a piece in the cache", MLA, CALL,
          "cache.update_and_fetch(c, k_r)", "cache.update_and_fetch(c, 0 * k_r + k_r[:, :, :1])",
          "decoding", MIXER, FORWARD),
    Fault("cache offset of one", CACHE, "KeyValueCache.update_and_fetch",
          "+= k.shape[-2]", "+= k.shape[-2] + 1", "decoding", MODEL, FORWARD),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught_and_located(fault: Fault, panels: dict[str, Backend],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    fault.is_caught_and_located("mla", panels, monkeypatch)
