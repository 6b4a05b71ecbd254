"""Known mistakes of ports of RetNet, planted in one panel of retnet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parity.locate import MODEL
from specs.backend import Backend
from tests.parity.planting import Fault

RETNET, LAYERS, CACHE, TORCH = ("mlx_models.retnet", "mlx_models.layers", "mlx_models.cache",
                                "torch_models.retnet")
MIXER, ROTARY, NORM = (f"layers.0.mixer{part}" for part in ("", ".rotary", ".head_norm"))
FIRST, FORWARD = ("parameters",), ("activations", "logits")
CALL, RETAIN, PARALLEL, CHUNKWISE, STEP = (f"Retention.{name}" for name in (
    "__call__", "retain", "parallel", "chunkwise", "step"))
LONG = {"block_size": 160}  # two chunks and half of one

FAULTS = [
    Fault("RoPE of halves for pairs", LAYERS, "PairRotary.__call__",
          "x[..., 0::2], x[..., 1::2]", "mx.split(x, 2, axis=-1)", "activations", ROTARY, FIRST,
          spec={"n_head": 2}),
    Fault("angles without their last end", RETNET, "Model.context", "self._rotary(",
          "RotaryTable(lambda start, T: np.outer(np.arange(start, start + T), 10000.0 ** "
          "-np.linspace(0, 1, 2, endpoint=False)))(", "activations", MODEL, FIRST),
    Fault("k without its scale", RETNET, CALL, "cos * self.scale, sin * self.scale", "cos, sin",
          "activations", MIXER, FIRST),
    Fault("k not turned", RETNET, CALL, "self.rotary(k, cos * self.scale, sin * self.scale)",
          "(k * self.scale)", "activations", MIXER, FIRST),
    Fault("another rate of forgetting", RETNET, "Model.decays", "self.spec.decay(Q),",
          "self.spec.decay(Q) ** 2,", "activations", MODEL, FIRST),
    Fault("sees the next token", RETNET, PARALLEL, "[..., :-1, :-1]", "[..., 1:, :-1]",
          "activations", MIXER, FIRST),
    Fault("forgets nothing", RETNET, PARALLEL, "within[..., :-1, :-1]",
          "mx.sign(within[..., :-1, :-1])", "activations", MIXER, FIRST),
    Fault("sign of the first score lost", RETNET, "Retention.sure",
          "mx.sign(q_0 @ k_0.swapaxes(-1, -2)) *", "", "activations", MIXER, FIRST),
    Fault("head norm's eps of the published code", RETNET, "HeadNorm.__call__", "HEAD_EPS", "1e-6",
          "activations", NORM, FIRST),
    Fault("head norm in float16, in torch, whose referee follows", TORCH, "HeadNorm.forward",
          "upcast(x)", "x.half()", "activations", NORM, FIRST),
    Fault("heads mixed up", RETNET, CALL, ".swapaxes(1, 2).reshape", ".reshape",
          "activations", MIXER, FIRST),
    Fault("a gate of sigmoids", RETNET, CALL, "silu(", "mx.sigmoid(", "activations", MIXER, FIRST),
    Fault("embedding's scale forgotten", "mlx_models.model", "LanguageModel.embedded",
          "self.embed(tokens)", "self.embed(tokens) / self.spec.n_embd**0.5", "activations", MODEL,
          FIRST),
    Fault("no gradient through the gate", RETNET, CALL, "silu(self.g_proj(x))",
          "mx.stop_gradient(silu(self.g_proj(x)))", "single-step", MIXER, FORWARD),
    Fault("chunks: the state forgets nothing", RETNET, "Retention.pass_on", "between @",
          "mx.sign(between) @", "activations", MIXER, FIRST, spec=LONG),
    Fault("chunks: written the wrong way round", RETNET, CHUNKWISE, "decay[..., -2, :-1, None]",
          "decay[..., :-1, :1]", "activations", MIXER, FIRST, spec=LONG),
    Fault("chunks: the state is read a token too young", RETNET, CHUNKWISE, "decay[..., 1:, :1]",
          "decay[..., :-1, :1]", "activations", MIXER, FIRST, spec=LONG),
    Fault("chunks: the rest begins anew", RETNET, CHUNKWISE, "short, None, state)",
          "short, None)", "activations", MIXER, FIRST, spec=LONG),
    Fault("chunks: no gradient through the state", RETNET, CHUNKWISE, "self.pass_on(",
          "(lambda *a: mx.stop_gradient(self.pass_on(*a)))(", "gradients", MIXER,
          FORWARD, spec=LONG),
    Fault("step: reads before it writes", RETNET, STEP, "upcast(q) @ state, state",
          "upcast(q) @ (state - new), state", "decoding", MIXER, FORWARD),
    Fault("step: forgets nothing, in torch", TORCH, STEP, "within[:, 1:2, :1] *", "",
          "decoding", MIXER, FORWARD, "torch"),
    Fault("step: state in float16", RETNET, STEP, "+ new", "+ new.astype(mx.float16)", "decoding",
          MIXER, FORWARD),
    Fault("pieces: begin anew", RETNET, RETAIN, "between, state)", "between)", "decoding", MIXER,
          FORWARD),
    Fault("cache offset of one", CACHE, "ConstantCache.put", "self.offset + T",
          "self.offset + T + (self.offset == 0)", "decoding", MODEL, FORWARD),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught_and_located(fault: Fault, panels: dict[str, Backend],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(fault, spec={"n_layer": 1, "block_size": 24, **fault.spec})
    small.is_caught_and_located("retnet", panels, monkeypatch)
