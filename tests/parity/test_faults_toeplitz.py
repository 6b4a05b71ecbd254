"""Known mistakes of Toeplitz mixers and of long convolutions, planted in one panel of toeplitz."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from parity.locate import MODEL
from specs.backend import Backend
from tests.parity.planting import Fault

TOEPLITZ, LONG, TORCH = "mlx_models.toeplitz", "mlx_models.longconv", "torch_models.toeplitz"
MIXER, MIX, MLP = "layers.0.mixer", "layers.0.mixer.mix", "layers.0.mlp"
FIRST, FORWARD = ("parameters",), ("activations", "logits")
MEAN: dict[str, Any] = {"do_toep_mean": True}
LONGER: dict[str, Any] = {"block_size": 70}  # longer than what products are for

FAULTS = [
    Fault("sees the next token", LONG, "direct", "@ folded(x)",
          "@ mx.roll(folded(x), -1, axis=1)", "activations", MIX, FIRST),
    Fault("a token does not see itself", LONG, "direct", "h[:, :T]",
          "h[:, :T] * (mx.arange(T) > 0)", "activations", MIX, FIRST),
    Fault("distances from the wrong end", LONG, "direct", "h[:, :T]", "h[:, :T][:, ::-1]",
          "activations", MIX, FIRST),
    Fault("a raw kernel for softplus", TOEPLITZ, "Mixer.weights",
          "softplus(kernel) if self.positive else kernel", "kernel", "activations", MIXER,
          FIRST),
    Fault("channels of heads interleaved", TOEPLITZ, "Mixer.__call__",
          "u.reshape(*x.shape[:2], self.n_head, -1)",
          "u.reshape(*x.shape[:2], -1, self.n_head).swapaxes(2, 3)",
          "activations", MIXER, FIRST),
    Fault("mean of all distances", TOEPLITZ, "Mix.__call__", "running_sums(a))",
          "running_sums(a)[:, -1:])", "activations", MIX, FIRST, spec=MEAN),
    Fault("mean of sizes", TOEPLITZ, "running_sums", "cumsum(a - whole, 1)",
          "cumsum(mx.abs(a) - whole, 1)", "activations", MIX, FIRST,
          spec={**MEAN, "kernel": "raw"}),
    Fault("bias before the mean", TOEPLITZ, "Mixer.__call__", "(y + by_token(self.kernel_bias"
          "[:, now]))", "(y + by_token(self.kernel_bias[:, now] / running_sums(self.weights("
          "now.stop))))", "activations", MIXER, FIRST, spec=MEAN),
    Fault("bias of the distance to the end", TOEPLITZ, "Mixer.__call__",
          "self.kernel_bias[:, now]", "self.kernel_bias[:, now][:, ::-1]", "activations", MIXER,
          FIRST),
    Fault("gelu by erf", TOEPLITZ, "MLP.__call__", "self.activation", "nn.gelu", "activations",
          MLP, FIRST),
    Fault("eps of another framework's default", "mlx_models.gpt", "Block.__init__",
          "self.mixer_norm = norm(spec.n_embd, spec.norm_eps)",
          "self.mixer_norm = norm(spec.n_embd, 1e-5)", "activations", "layers.0.mixer_norm", FIRST),
    Fault("positions added", "mlx_models.model", "LanguageModel.embedded", "self.embed(tokens)",
          "self.embed(tokens) + 1e-3 * mx.arange(tokens.shape[1])[:, None]", "activations", MODEL,
          FIRST),
    Fault("dropout of what is looked up", TOEPLITZ, "Model.enter", "cache, None)", "cache, key)",
          "gradients", MODEL, FORWARD),
    Fault("no gradient through the sums", TOEPLITZ, "Mix.__call__", "running_sums(a))",
          "mx.stop_gradient(running_sums(a)))", "single-step", MIX, FORWARD, spec=MEAN),
    Fault("no gradient of the kernel", TOEPLITZ, "Mix.parallel", "long_conv(u, a)",
          "long_conv(u, mx.stop_gradient(a))", "single-step", MIX, FORWARD),
    Fault("spectra: wrap around", LONG, "size", "least = 2 * T - 1", "least = T", "activations",
          MIX, FIRST, spec=LONGER),
    Fault("spectra: the gradient goes forwards", LONG, "spectra_backward",
          "spectrum(h)[:, None].conj()", "spectrum(h)[:, None]", "gradients", MIX, FORWARD,
          spec=LONGER),
    Fault("spectra: the kernel's gradient of the last row alone", LONG, "spectra_backward",
          ".sum(1)", "[:, -1]", "gradients", MIX, FORWARD, spec=LONGER),
    Fault("decoding: the mean of the first tokens", TOEPLITZ, "Mixer.__call__",
          "once(running_sums)[:, now]", "once(running_sums)[:, : x.shape[1]]", "decoding", MIXER,
          FORWARD, spec=MEAN),
    Fault("decoding: the bias of the first tokens, in torch", TORCH, "Mixer.forward",
          "self.kernel_bias[:, now]", "self.kernel_bias[:, : x.shape[1]]", "decoding", MIXER,
          FORWARD, "torch"),
    Fault("decoding: kernel without softplus", TOEPLITZ, "Mixer.__call__",
          "cache(u, self.weights)", "cache(u, lambda: self.kernel)", "decoding", MIXER, FORWARD),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught_and_located(fault: Fault, panels: dict[str, Backend],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(fault, spec={"n_layer": 1, "block_size": 24, **fault.spec})
    small.is_caught_and_located("toeplitz", panels, monkeypatch)
