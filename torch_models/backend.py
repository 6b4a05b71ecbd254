"""The PyTorch panel behind the protocol of specs/backend.py."""

import importlib

import torch

from specs.backend import Batch, OptimizerSettings, load_strictly
from specs.errors import UserError
from specs.machine import best_rate, chip, process_peak, reset_process_peak
from torch_models.attention import choose
from torch_models.decoder import Decoder
from torch_models.loss import mean_cross_entropy
from torch_models.trace import pullback, replay, trace
from torch_models.trainer import Trainer, tensors


class Backend:
    """PyTorch on `device`: "cpu", "cuda", "cuda:1" or "mps"; None is CUDA where there is one."""

    name = "torch"

    def __init__(self, device=None):
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = self.device.partition(":")[0]
        here = {"cpu": True, "cuda": torch.cuda.is_available(),
                "mps": torch.backends.mps.is_available()}
        if not here.get(kind):
            found = ", ".join(name for name, ok in here.items() if ok)
            raise UserError(f"PyTorch finds no device {self.device!r} here; it has: {found}")
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"no device {self.device!r}: {reason}") from error

    def versions(self):
        on_cuda = self.device.startswith("cuda")
        return {"torch": torch.__version__, "device": self.device,
                "chip": torch.cuda.get_device_name(self.device) if on_cuda else chip(),
                "blas": "cuBLAS" if on_cuda else "MKL" if torch.backends.mkl.is_available()
                else "torch's own", "threads": str(torch.get_num_threads())}

    def build(self, spec, weights, dtype="float32", recompute=False, attention="sdpa"):
        weights = load_strictly(spec, weights)
        master = torch.float64 if dtype == "float64" else torch.float32
        # On the device "meta" torch would import its compiler, 70 MB, to fill what is not there.
        module = importlib.import_module(f"torch_models.{spec.arch}")
        model = module.Model(spec, getattr(torch, dtype))
        state = {name: torch.tensor(w, dtype=master, device=self.device)
                 for name, w in weights.items()}
        model.load_state_dict(state, strict=True, assign=True)
        model.recompute = recompute
        choose(model, attention)
        return model

    def weights(self, model):
        return {name: _numpy(w) for name, w in model.state_dict().items()}

    def logits(self, model, tokens):
        with torch.no_grad():
            return _numpy(model(torch.tensor(tokens, device=self.device)))

    def loss_and_grads(self, model, batch: Batch):
        tokens, targets, key = tensors(batch, self.device)
        loss = mean_cross_entropy(model(tokens, key=key), targets)
        params = dict(model.named_parameters())
        grads = torch.autograd.grad(loss, list(params.values()))
        return loss.item(), {n: _numpy(g) for n, g in zip(params, grads, strict=True)}

    def trace(self, model, batch: Batch, grads=False):
        return trace(model, tensors(batch, self.device), grads)

    def replay(self, model, path, inputs):
        return replay(model, path, inputs, self.device)

    def pullback(self, model, path, inputs, grad):
        return pullback(model, path, inputs, grad, self.device)

    def trainer(self, model, settings: OptimizerSettings, compile=False):
        return Trainer(model, settings, compile, self.device)

    def decoder(self, model, batch_size=1, length=None, state="auto"):
        return Decoder(model, model.make_cache(batch_size, length, state), self.device)

    def synchronize(self):
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        elif self.device == "mps":
            torch.mps.synchronize()

    def peak_memory(self):
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device)
        if self.device == "mps":
            return torch.mps.driver_allocated_memory()
        return process_peak()

    def reset_peak_memory(self):
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
        reset_process_peak()

    def matmul_rate(self, dtype="float32"):
        size = 4096 if self.device != "cpu" else 1024
        a = torch.ones(size, size, dtype=getattr(torch, dtype), device=self.device)
        return best_rate(lambda: a @ a, self.synchronize, 2 * size**3)

    def bandwidth(self):
        size = 16384 if self.device != "cpu" else 8192
        a, v = torch.ones(size, size, device=self.device), torch.ones(size, device=self.device)
        return best_rate(lambda: a @ v, self.synchronize, a.nbytes)


def _numpy(tensor):
    return tensor.numpy(force=True).copy()
