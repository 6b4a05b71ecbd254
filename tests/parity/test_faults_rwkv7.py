"""Known mistakes of ports of RWKV-7, planted in one panel of rwkv7."""

from __future__ import annotations

import pytest

from parity.locate import MODEL
from specs.backend import Backend
from tests.parity.planting import Fault

RWKV7, FAST, TORCH = "mlx_models.rwkv7", "mlx_models.rwkv7_fast", "torch_models.rwkv7"
MIXER, HEADS = "layers.0.mixer", "layers.0.mixer.ln_x"
FIRST, FORWARD = ("parameters",), ("activations", "logits")
CALL, TORCH_CALL, CHUNKS, STEP = (f"TimeMix.{name}" for name in (
    "__call__", "forward", "chunkwise", "step"))

FAULTS = [
    Fault("shift in the wrong direction", RWKV7, "token_before",
          "(last, x[:, :-1])", "(x[:, 1:], last)", "activations", MODEL, FIRST),
    Fault("decay's factors without tanh", RWKV7, CALL, "self.w2, mx.tanh)", "self.w2)",
          "activations", MIXER, FIRST),
    Fault("κ from the key that is scaled already", RWKV7, CALL,
          "kappa = self.unit(k * self.k_k)",
          "kappa = self.unit(k * (1 + (a - 1) * self.k_a) * self.k_k)",
          "activations", MIXER, FIRST),
    Fault("bonus from this layer's own values", RWKV7, CALL,
          "* self.heads(v)", "* self.heads(v if self.first else own)",
          "activations", "layers.1.mixer", FIRST),
    Fault("values of the first layer forgotten, in torch, whose referee follows", TORCH,
          TORCH_CALL, "own + (v - own) * late", "own",
          "activations", "layers.1.mixer", FIRST),
    Fault("gradient of the first values stopped", RWKV7, "Block.values_of",
          "self.mixer.values_of(self.mixer_norm(x).astype(self.dtype), cache)",
          "mx.stop_gradient(self.mixer.values_of(self.mixer_norm(x).astype(self.dtype), cache))",
          "gradients", MIXER, FORWARD),
    Fault("heads normed with the eps of the others", RWKV7, "HeadNorm.__call__", "HEAD_EPS", "1e-5",
          "activations", HEADS, FIRST),
    Fault("erasure reads the state after the decay", RWKV7, CHUNKS, "kappa * before", "kappa * P",
          "activations", MIXER, FIRST),
    Fault("no decay between chunks", FAST, "forward", "Z = p * (Z + kv + b @ u)",
          "Z = Z + kv + b @ u", "activations", MIXER, FIRST),
    Fault("inverse by powers, too few of them", FAST, "inverse", "while size < len(t):",
          "while size < len(t) // 2:", "activations", MIXER, FIRST),
    Fault("gradient of what was erased forgotten", FAST, "backward", "below(X, dy)",
          "below(0 * X, dy)", "single-step", "layers.1.mixer", FORWARD),
    Fault("step: decay in bfloat16, as mlx_lm has it", RWKV7, STEP, "mx.exp(w)[",
          "mx.exp(w).astype(mx.bfloat16).astype(mx.float32)[", "decoding", MIXER, FORWARD),
    Fault("cache: last input of the mixer forgotten, in torch", TORCH, TORCH_CALL,
          "mixed=last_of(x)", "mixed=0 * last_of(x)", "decoding", MODEL, FORWARD, "torch"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught_and_located(fault: Fault, panels: dict[str, Backend],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    fault.is_caught_and_located("rwkv7", panels, monkeypatch)
