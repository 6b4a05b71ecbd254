"""A harness is as good as what it catches: known mistakes, planted in one panel of BDH, of the
optimizers or of the house.

Each is an edit of one line of a panel, as small as such mistakes are. The rungs before the one
that it belongs to hold; that one fails, on that panel only, and names the place.
"""

from __future__ import annotations

import pytest

from parity.locate import MODEL
from specs.backend import Backend
from tests.parity.planting import Fault

MLX, TORCH, LAYERS = "mlx_models.bdh", "torch_models.bdh", "mlx_models.layers"
ATTN, FIRST = "layers.0.attn", ("parameters",)
FORWARD = ("activations", "logits")

FAULTS = [
    Fault("weights in float16", "mlx_models.backend", "Backend.build",
          "w.astype(np.float32)", "w.astype(np.float16).astype(np.float32)", "parameters", "embed"),
    Fault("LayerNorm eps", MLX, "LayerNorm.__call__",
          "self.eps)", "1e-6)", "activations", "embed_norm", FIRST),
    Fault("LayerNorm eps in torch, whose referee follows", TORCH, "LayerNorm.forward",
          "self.eps)", "1e-6)", "activations", "embed_norm", FIRST),
    Fault("LayerNorm eps in layer 1 only", "mlx_models.backend", "Backend.build",
          "model.recompute = recompute", "model.layers[1].mlp_norm.eps = 1e-6",
          "activations", "layers.1.mlp_norm", FIRST),
    Fault("RoPE of halves", LAYERS, "PairRotary.__call__",
          "x[..., 0::2], x[..., 1::2]", "mx.split(x, 2, axis=-1)",
          "activations", "layers.0.rotary", FIRST),
    Fault("RoPE turns back", LAYERS, "PairRotary.__call__",
          "(even * cos - odd * sin, odd * cos + even * sin)",
          "(even * cos + odd * sin, odd * cos - even * sin)",
          "activations", "layers.0.rotary", FIRST),
    Fault("token sees itself", MLX, "Attention.quadratic",
          "S - T - 1)", "S - T)", "activations", ATTN, FIRST),
    Fault("window off by one", MLX, "Attention.quadratic",
          "self.window + 1)", "self.window)", "activations", ATTN, FIRST, spec={"window": 5}),
    Fault("score scale missing", MLX, "Attention.quadratic", "self.scale != 1", "False",
          "activations", ATTN, FIRST, spec={"score_scale": "linear"}),
    Fault("scores in float16", MLX, "Attention.quadratic",
          "q @ r.swapaxes(-1, -2)",
          "(q.astype(mx.float16) @ r.swapaxes(-1, -2).astype(mx.float16)).astype(mx.float32)",
          "activations", ATTN, FIRST),
    Fault("ReLU is GELU", MLX, "Neurons.__call__",
          "nn.relu", "nn.gelu", "activations", "layers.0.encode", FIRST),
    Fault("encoder transposed", MLX, "Neurons.__call__", "@ weight", "@ weight.swapaxes(-1, -2)",
          "activations", "layers.0.encode", FIRST, spec={"mlp_internal_dim_multiplier": 2}),
    Fault("decoder's head order", MLX, "Model.layer_weights", "encoder.shape[::2], -1)",
          "encoder.shape[::2], -1)[::-1]", "activations", MODEL, FIRST),
    Fault("residual missing", MLX, "Block.__call__",
          "x + self.mlp_norm(o)", "self.mlp_norm(o)", "activations", "layers.0", FIRST),
    Fault("no gradient through the queries", MLX, "Attention.__call__",
          "self.quadratic(r, r, x)", "self.quadratic(mx.stop_gradient(r), r, x)",
          "single-step", "layers.1.attn", FORWARD),
    Fault("no gradient into the embedding", MLX, "Model.hidden",
          "self.embed(tokens)", "mx.stop_gradient(self.embed(tokens))",
          "gradients", MODEL, ("single-step", *FORWARD)),
    Fault("loss over the wrong count", "mlx_models.backend", "Backend.loss_and_grads",
          "return mean_cross_entropy(", "return targets.size / (targets.size + 1) * "
          "mean_cross_entropy(", "loss", good=FORWARD),
    Fault("dropout does not scale", MLX, "dropout", "x * (1 / (1 - p))", "x",
          "gradients", "layers.0", ("single-step", "loss", *FORWARD)),
    Fault("AdamW without bias correction", "mlx_models.optim", "Optimizer.__init__",
          "bias_correction=True", "bias_correction=False", "optimizer", good=("gradients",)),
    Fault("Muon couples the decay", "mlx_models.optim", "Optimizer.muon_step",
          "beta * old + (1 - beta) * grad", "beta * old + (1 - beta) * (grad + decay * weight)",
          "optimizer", good=("gradients",)),
    Fault("Muon flattens heads", "mlx_models.optim", "Optimizer.muon_step",
          "U.reshape(param.stack)", "U.reshape(1, len(U), -1)", "optimizer", good=("gradients",)),
    Fault("micro-batches taken as equal", "mlx_models.trainer", "Trainer.step",
          "sum(batch.counted for batch in batches)", "batches[0].counted * len(batches)",
          "optimizer", good=("gradients",)),
    Fault("micro-batches taken as equal in torch", "torch_models.trainer", "Trainer.step",
          "sum(batch.counted for batch in batches)", "batches[0].counted * len(batches)",
          "optimizer", good=("gradients",), panel="torch"),
    Fault("training without dropout", "mlx_models.trainer", "Trainer.scaled_loss",
          "tokens, key)", "tokens, None)", "trajectory", good=("gradients", "optimizer")),
    Fault("cache offset of one", MLX, "KeyCache.attend",
          "+= r.shape[2]", "+= r.shape[2] + 1", "decoding", MODEL, FORWARD),
    Fault("cache offset of one in torch", TORCH, "KeyCache.attend",
          "+= r.shape[2]", "+= r.shape[2] + 1", "decoding", MODEL, FORWARD, "torch"),
    Fault("state is written before it is read", MLX, "StateCache.attend",
          "read(r, self.state)", "read(r, attention.write(self.state, r, x))",
          "decoding", ATTN, FORWARD),
    Fault("fork in another order", "mlx_models.decoder", "Decoder.fork",
          "list(rows)", "sorted(rows)", "decoding", good=FORWARD),
    Fault("text from a state written too early", MLX, "StateCache.attend",
          "read(r, self.state)", "read(r, attention.write(self.state, r, x))", "sampling"),
    Fault("optimizer state loaded as new", "mlx_models.optim", "Optimizer.load_state",
          'int(state["step"])', "0", "resume"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught_and_located(fault: Fault, panels: dict[str, Backend],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    fault.is_caught_and_located("bdh", panels, monkeypatch)
