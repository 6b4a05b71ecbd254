"""Known mistakes of mixtures of experts, planted in one panel of moe."""

from __future__ import annotations

import pytest

from parity.locate import MODEL
from specs.backend import Backend
from tests.parity.planting import Fault

MOE, GROUPED = "mlx_models.moe", "mlx_models.grouped"
TORCH, TORCH_GROUPED = "torch_models.moe", "torch_models.grouped"
MIXTURE, FORWARD, CHOOSE, PENALTY = (f"MixtureOfExperts.{name}" for name in (
    "__call__", "forward", "choose", "penalty"))
MLP, EXPERTS = "layers.0.mlp", "layers.0.mlp.experts"
FIRST, RIGHT = ("parameters",), ("loss",)
BIAS = {"balance": "bias"}

FAULTS = [
    Fault("softmax over the chosen alone", MOE, MIXTURE, "mx.take_along_axis(p, chosen, axis=-1)",
          "mx.softmax(mx.take_along_axis(logits, chosen, axis=-1), axis=-1)", "activations", MLP,
          FIRST, spec={"norm_topk_prob": False}),
    Fault("shares not brought to a sum of one", MOE, MIXTURE, "if self.spec.norm_topk_prob",
          "if False", "activations", MLP, FIRST),
    Fault("shares not brought to a sum of one in torch, whose referee follows", TORCH, FORWARD,
          "share.sum(-1, keepdim=True)", "(share.sum(-1, keepdim=True) + 1e-5)", "activations",
          MLP, FIRST, spec={"norm_topk_prob": True}),
    Fault("shares go with another expert", MOE, MIXTURE, "self.experts(x, chosen, share)",
          "self.experts(x, chosen, share[..., ::-1])", "activations", MLP, FIRST),
    Fault("router in float16", MOE, MIXTURE, "self.router(x)",
          "self.router(x.astype(mx.float16).astype(mx.float32))", "activations", MLP, FIRST),
    Fault("the idlest are chosen", GROUPED, "largest", "-scores", "scores", "activations", MLP,
          FIRST),
    Fault("bias not in the choice", MOE, CHOOSE, 'self.spec.balance == "bias"', "False",
          "activations", MLP, FIRST, spec=BIAS),
    Fault("bias in the shares", MOE, MIXTURE, "mx.take_along_axis(p, chosen, axis=-1)",
          "mx.take_along_axis(p + self.balance_bias, chosen, axis=-1)", "activations", MLP,
          FIRST, spec=BIAS),
    Fault("shared experts forgotten", MOE, MIXTURE, "y = y + self.shared(x)", "pass",
          "activations", MLP, FIRST, spec={"n_shared_experts": 1}),
    Fault("outputs not brought back in order", GROUPED, "collect", "x[place]", "x[:len(place)]",
          "activations", EXPERTS, FIRST),
    Fault("outputs not brought back in order in torch", TORCH_GROUPED, "collect",
          "x.index_select(0, place)", "x[:len(place)]", "activations", EXPERTS, FIRST, "torch"),
    Fault("a token too many for an expert's rows", GROUPED, "layout",
          "(mine.sum(0) + block - 1)", "mine.sum(0)", "activations", EXPERTS, FIRST),
    Fault("rows counted for the expert before in torch", TORCH_GROUPED, "product",
          ">= ends[:-1]", "> ends[:-1]", "activations", EXPERTS, FIRST, "torch"),
    Fault("gate and up swapped", MOE, "Experts.mlp", "self.gate_proj if self.gated",
          "self.up_proj if self.gated", "activations", EXPERTS, FIRST),
    Fault("gelu_tanh for gelu", MOE, "Experts.mlp", "self.activation(product",
          "nn.gelu_approx(product", "activations", EXPERTS, FIRST, spec={"expert_mlp": "gelu"}),
    Fault("embedding not scaled", MOE, "Model.embedded", "if self.spec.embed_scale", "if False",
          "activations", MODEL, FIRST, spec={"embed_scale": True}),
    Fault("no gradient to the router", MOE, MIXTURE, "self.experts(x, chosen, share)",
          "self.experts(x, chosen, mx.stop_gradient(share))", "single-step", "layers.1.mlp",
          ("activations", "logits")),
    Fault("noise too small", MOE, "noise", "3**0.5", "2**0.5", "gradients", MLP,
          ("activations", "logits", "loss"), spec={"router_noise": 0.5}),
    Fault("one key for noise and dropout of two layers", MOE, "Block.__call__", "fold(key, 2)",
          "key", "gradients", "layers.0", ("loss",), spec={"router_noise": 0.5}),
    Fault("balance loss not times the experts", MOE, PENALTY, "balance = E * ", "balance = ",
          "optimizer", good=RIGHT, spec={"aux_loss_coef": 1.0}),
    Fault("balance loss counts the tokens of all rows", MOE, PENALTY, "share = mine.sum(1)",
          "share = mine.mean(0).sum(0)", "optimizer", good=RIGHT, spec={"aux_loss_coef": 1.0}),
    Fault("z-loss of the mean", MOE, PENALTY,
          "mx.square(mx.logsumexp(logits, axis=-1)).mean(1).sum()",
          "mx.square(mx.logsumexp(logits, axis=-1).mean(1)).sum()", "optimizer", good=RIGHT,
          spec={"z_loss_coef": 10.0}),
    Fault("bias moves towards the busy", MOE, "Model.balance", "+= BALANCE", "-= BALANCE",
          "optimizer", good=RIGHT, spec=BIAS),
    Fault("rows counted for the expert before", GROUPED, "product", ">= ends[:-1]",
          "> ends[:-1]", "activations", EXPERTS, FIRST),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught_and_located(fault: Fault, panels: dict[str, Backend],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    fault.is_caught_and_located("moe", panels, monkeypatch)
