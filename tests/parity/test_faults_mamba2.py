"""Known mistakes of ports of Mamba-2, planted in one panel of mamba2."""

from __future__ import annotations

from typing import Any

import pytest

from specs.backend import Backend
from tests.parity.planting import Fault

MAMBA, SHORT, TORCH = "mlx_models.mamba2", "mlx_models.shortconv", "torch_models.mamba2"
MIXER, NORM = "layers.0.mixer", "layers.0.mixer.norm"
FIRST, FORWARD = ("parameters",), ("logits",)
CALL, CHUNKED, STEP = (f"StateSpace.{name}" for name in ("__call__", "chunked", "step"))
GROUPS: dict[str, Any] = {"n_groups": 2, "head_dim": 8}
LIMITS: dict[str, Any] = {"time_step_limit": [0.1, 0.7]}

FAULTS = [
    Fault("taps in reverse", SHORT, "convolve", "weight.T", "weight[:, ::-1].T",
          "activations", MIXER, FIRST),
    Fault("no bias of the convolution", SHORT, "short_conv", " + bias", "",
          "activations", MIXER, FIRST),
    Fault("convolution one token late", SHORT, "short_conv", "convolve(w,",
          "convolve(mx.concatenate((0 * w[:, :1], w[:, :-1]), axis=1),",
          "activations", MIXER, FIRST),
    Fault("bias of the time step after softplus", MAMBA, CALL,
          "softplus(upcast(dt) + self.dt_bias)", "softplus(upcast(dt)) + self.dt_bias",
          "activations", MIXER, FIRST),
    Fault("A_log taken for A", MAMBA, CALL, "-exp(self.A_log)", "-self.A_log",
          "activations", MIXER, FIRST),
    Fault("gate and input change places", MAMBA, CALL, "z, w, dt = split(self.in_proj(x), (di, "
          "di + len(self.conv_bias)), -1)", "w, z, dt = split(self.in_proj(x), "
          "(len(self.conv_bias), di + len(self.conv_bias)), -1)", "activations", MIXER, FIRST),
    Fault("no limits of the time step", MAMBA, CALL, "*self.limit", "0, None",
          "activations", MIXER, FIRST, spec=LIMITS),
    Fault("skip forgotten", MAMBA, CALL, "self.D[:, None] * u", "0",
          "activations", MIXER, FIRST),
    Fault("a token does not see itself", MAMBA, "segment_sums", "-mx.inf), 1)", "-mx.inf), 0)",
          "activations", MIXER, FIRST),
    Fault("decay counts from the token itself", MAMBA, "segment_sums",
          "rest[..., None, :])", "(rest - x)[..., None, :])", "activations", MIXER, FIRST),
    Fault("heads of a group lie apart", MAMBA, CHUNKED, "decay.reshape(B, K, G, -1, Q, Q)",
          "decay.reshape(B, K, -1, G, Q, Q).swapaxes(2, 3)", "activations", MIXER, FIRST,
          spec=GROUPS),
    Fault("state decays a chunk too late", MAMBA, CHUNKED, "pad(total, 2, 1, 0)",
          "pad(total, 2, 0, 1)", "logits", MIXER, FIRST),
    Fault("no state between chunks", MAMBA, CHUNKED, "y = y + by_head", "y = y + 0 * by_head",
          "logits", MIXER, FIRST),
    Fault("norm before the gate", MAMBA, "GatedNorm.__call__",
          "return mx.fast.rms_norm(parts, None, self.eps).reshape(h.shape) * self.weight",
          "return mx.fast.rms_norm(upcast(y), self.weight, self.eps) * silu(upcast(z))",
          "activations", NORM, FIRST),
    Fault("norm over all groups", MAMBA, "GatedNorm.__call__", "self.groups, -1", "1, -1",
          "activations", NORM, FIRST, spec=GROUPS),
    Fault("no gradient through the decays", MAMBA, CHUNKED, "exp(segment_sums(da))",
          "exp(segment_sums(mx.stop_gradient(da)))", "single-step", MIXER, FORWARD),
    Fault("no gradient through the state", MAMBA, CHUNKED, "@ states).swapaxes",
          "@ mx.stop_gradient(states)).swapaxes", "single-step", "layers.1.mixer", FORWARD),
    Fault("step: limits of the time step ignored", MAMBA, CALL, "clip(softplus(upcast(dt) + "
          "self.dt_bias), *self.limit)", "clip(softplus(upcast(dt) + self.dt_bias), "
          "*(self.limit if cache is None or T > 1 else (0, None)))", "decoding", MIXER, FORWARD,
          spec=LIMITS),
    Fault("step: read before write", MAMBA, STEP, "y = added @", "y = (added if state is None "
          "else state.reshape(added.shape)) @", "decoding", MIXER, FORWARD),
    Fault("state in float16, in torch", TORCH, "StateSpace.forward", "state=state",
          "state=state.half().float()", "decoding", MIXER, FORWARD, "torch"),
    Fault("inputs of the convolution one token old", SHORT, "short_conv", "w[:, T:]",
          "w[:, T - 1 : -1]", "decoding", MIXER, FORWARD),
    Fault("an incoming state forgotten by a piece", MAMBA, CHUNKED, "if state is None:",
          "if True:", "decoding", MIXER, FORWARD),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught_and_located(fault: Fault, panels: dict[str, Backend],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    fault.is_caught_and_located("mamba2", panels, monkeypatch)
