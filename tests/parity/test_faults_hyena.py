"""Known mistakes of ports of Hyena and of convolutions token by token, planted in one panel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parity.locate import MODEL
from specs.backend import Backend
from tests.parity.planting import Fault

HYENA, ONLINE, TORCH = "mlx_models.hyena", "mlx_models.online", "torch_models.hyena"
MIXER, FILTER = "layers.0.mixer", "layers.0.mixer.filter"
FIRST, FORWARD = ("parameters",), ("activations", "logits")
CALL, FILTERS, NETWORK = "Hyena.__call__", "Hyena.filters", "Filter.__call__"
KEEP, AHEAD, READ = "OnlineConv.keep", "Kernel.ahead", "OnlineConv.read"
ORDER3 = {"order": 3}
LONG = {"block_size": 200}  # three blocks of decoding, and some of the next

FAULTS = [
    Fault("gates in the order of their names", HYENA, CALL, "reversed(gates[1:])", "gates[1:]",
          "activations", MIXER, FIRST, spec=ORDER3),
    Fault("v comes first", HYENA, CALL, "*gates, v = mx", "v, *gates = mx", "activations", MIXER,
          FIRST),
    Fault("filters of an order lie apart", HYENA, FILTERS, "mx.split(h.T, self.order - 1, axis=0)",
          "[h.T[o :: self.order - 1] for o in range(self.order - 1)]", "activations", MIXER, FIRST,
          spec=ORDER3),
    Fault("bias of the filters forgotten", HYENA, FILTERS, " + self.filter_bias.reshape(1, -1)", "",
          "activations", MIXER, FIRST),
    Fault("bias added to what is convolved", HYENA, FILTERS,
          "mx.concatenate((h[:1] + self.filter_bias.reshape(1, -1), h[1:]), axis=0)",
          "h + self.filter_bias.reshape(1, -1)", "activations", MIXER, FIRST),
    Fault("frequency in the first sine alone", HYENA, NETWORK, "self.freq * layer(z)",
          "(self.freq if layer is self.l1 else 1) * layer(z)", "activations", FILTER, FIRST),
    Fault("no sine before the last product", HYENA, NETWORK, "return self.out(z)",
          "return self.out(layer(z))", "activations", FILTER, FIRST),
    Fault("filters do not decay", HYENA, NETWORK, "self.out(z) * decay", "self.out(z)",
          "activations", FILTER, FIRST),
    Fault("grid of the text's own length", HYENA, "Model.context", "self.spec.features()",
          "self.spec.replace(block_size=max(2, tokens.shape[1])).features()", "activations", MODEL,
          FIRST),
    Fault("gate after the convolution", HYENA, CALL, "conv((v * gate)[..., None])[..., 0]",
          "conv(v[..., None])[..., 0] * gate", "activations", MIXER, FIRST),
    Fault("last gate in float16, in torch, whose referee follows", TORCH, "Hyena.forward",
          "self.out_proj(v * gates[0])", "self.out_proj(v * gates[0].half())", "activations", MIXER,
          FIRST),
    Fault("no gradient through the gate", HYENA, CALL, "v * gate)", "v * mx.stop_gradient(gate))",
          "single-step", MIXER, FORWARD),
    Fault("no gradient at the filters", HYENA, CALL, "partial(long_conv, h=h)",
          "partial(long_conv, h=mx.stop_gradient(h))", "gradients", MIXER, FORWARD),
    Fault("spectra too short, which wrap around", "mlx_models.longconv", "size", "2 * T - 1",
          "2 * T - 2", "activations", MIXER, FIRST, spec=LONG),
    Fault("decoding: short convolution begins anew", HYENA, CALL, "else cache.inputs", "else None",
          "decoding", MIXER, FORWARD),
    Fault("decoding: a filter for all orders", HYENA, CALL, "filters()[o]", "filters()[0]",
          "decoding", MIXER, FORWARD, spec=ORDER3),
    Fault("decoding: a tile one token late", ONLINE, AHEAD, "[:, :, U:]", "[:, :, U - 1 : -1]",
          "decoding", MIXER, FORWARD, spec=LONG),
    Fault("decoding: a tile of the whole past", ONLINE, KEEP, "largest_power(self.offset)",
          "self.offset", "decoding", MIXER, FORWARD, spec=LONG),
    Fault("decoding: tiles take each other's place", ONLINE, KEEP, "+= more",
          "= more", "decoding", MIXER, FORWARD, spec=LONG),
    Fault("decoding: a block is never whole", ONLINE, READ, "% self.block == 0", "% 65 == 0",
          "decoding", MIXER, FORWARD, spec=LONG),
    Fault("decoding: rows in float16", ONLINE, KEEP, "self.rows = inputs",
          "self.rows = inputs.astype(mx.float16)", "decoding", MIXER, FORWARD, spec=LONG),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught_and_located(fault: Fault, panels: dict[str, Backend],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(fault, spec={"n_layer": 1, "block_size": 24, **fault.spec})
    small.is_caught_and_located("hyena", panels, monkeypatch)
