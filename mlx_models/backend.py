"""The MLX panel behind the protocol of specs/backend.py."""

import importlib
import os
from importlib.metadata import version

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

import mlx_models
from mlx_models.attention import choose
from mlx_models.decoder import Decoder
from mlx_models.loss import mean_cross_entropy
from mlx_models.trace import pullback, replay, trace
from mlx_models.trainer import Trainer, arrays
from specs.backend import Batch, OptimizerSettings, load_strictly
from specs.errors import UserError
from specs.machine import best_rate, chip, process_peak, reset_process_peak


class Backend:
    """MLX on `device`: "gpu" (Metal or CUDA) or "cpu"; None is the GPU where there is one.

    The device is MLX's default device: one per process.
    """

    name = "mlx"

    def __init__(self, device=None):
        gpu = mx.is_available(mx.gpu)
        self.device = device or ("gpu" if gpu else "cpu")
        if self.device not in ("cpu", "gpu") or (self.device == "gpu" and not gpu):
            raise UserError(f"MLX finds no device {self.device!r} here; it has: "
                            + ("gpu, cpu" if gpu else "cpu"))
        mx.set_default_device(mx.gpu if self.device == "gpu" else mx.cpu)
        if self.device == "cpu":  # so that streams side by side are fed in turn
            os.environ.setdefault("MLX_BFS_MAX_WIDTH", "2000")

    def versions(self):
        on_cuda = self.device == "gpu" and not mx.metal.is_available()
        return {"mlx": version("mlx"), "device": self.device,
                "chip": mx.device_info()["device_name"] if on_cuda else chip(),
                "blas": mlx_models.BLAS if self.device == "cpu" else "MLX's own",
                "tf32": os.environ["MLX_ENABLE_TF32"]}

    def build(self, spec, weights, dtype="float32", recompute=False, attention="sdpa"):
        if dtype == "float64":
            raise UserError("MLX computes exp and friends in float32: for float64 use "
                            "--backend torch")
        weights = load_strictly(spec, weights)
        module = importlib.import_module(f"mlx_models.{spec.arch}")
        model = module.Model(spec, getattr(mx, dtype))
        state = [(name, mx.array(w.astype(np.float32))) for name, w in weights.items()]
        model.load_weights(state, strict=True)
        model.recompute = recompute
        choose(model, attention)
        return model

    def weights(self, model):
        return {name: np.array(w) for name, w in tree_flatten(model.parameters())}

    def logits(self, model, tokens):
        return np.array(model(mx.array(tokens)))

    def loss_and_grads(self, model, batch: Batch):
        tokens, targets, key = arrays(batch)

        def mean_loss():
            return mean_cross_entropy(model(tokens, key=key), targets)

        loss, grads = nn.value_and_grad(model, mean_loss)()
        return loss.item(), {name: np.array(g) for name, g in tree_flatten(grads)}

    def trace(self, model, batch: Batch, grads=False):
        return trace(model, arrays(batch), grads)

    def replay(self, model, path, inputs):
        return replay(model, path, inputs)

    def pullback(self, model, path, inputs, grad):
        return pullback(model, path, inputs, grad)

    def trainer(self, model, settings: OptimizerSettings, compile=False):
        return Trainer(model, settings, compile)

    def decoder(self, model, batch_size=1, length=None, state="auto"):
        return Decoder(model, model.make_cache(batch_size, length, state))

    def synchronize(self):
        mx.synchronize()

    def peak_memory(self):
        if self.device == "gpu":  # its peak begins at nothing, not at what is in use
            return max(mx.get_peak_memory(), mx.get_active_memory())
        return process_peak()

    def reset_peak_memory(self):
        mx.reset_peak_memory()
        reset_process_peak()

    def matmul_rate(self, dtype="float32"):
        size = 4096 if self.device != "cpu" else 1024
        a = mx.ones((size, size), getattr(mx, dtype))
        return best_rate(lambda: mx.eval(a @ a), self.synchronize, 2 * size**3)

    def bandwidth(self):
        size = 16384 if self.device != "cpu" else 8192
        a, v = mx.ones((size, size)), mx.ones(size)
        return best_rate(lambda: mx.eval(a @ v), self.synchronize, a.nbytes)
