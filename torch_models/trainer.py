"""Training steps without waiting: accumulation, clipping, loss scaling, the optimizer."""

import sys

import numpy as np
import torch

from specs.backend import Progress, fitting_state
from specs.machine import give_back
from torch_models.loss import head_loss, judged, training_pass
from torch_models.optim import Optimizer

PIECE = 2**20  # elements squared at once
GROW_AFTER = 2000  # good steps in float16 before the loss scale is doubled


def tensors(batch, device):
    """(tokens, targets, key) of a `Batch` on the device."""
    key = None if batch.keys is None else carried(batch.keys, device)
    return carried(batch.tokens, device), carried(batch.targets, device, torch.long), key


def carried(numbers, device, dtype=None):
    """The numbers on the device. CUDA fetches them itself, from memory that stays in its place."""
    if not device.startswith("cuda"):
        return torch.tensor(numbers, dtype=dtype, device=device)
    return torch.tensor(numbers, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def summed(loads, more):
    """The loads of the experts of each layer, and more of them."""
    return [one + other for one, other in zip(loads, more, strict=True)] if loads else more


def can_compile():
    """Whether torch.compile works here: on a CPU it needs a C++ compiler."""
    from torch._dynamo.exc import BackendCompilerFailed  # 70 MB that few need

    try:
        torch.compile(torch.sin)(torch.ones(1))
    except BackendCompilerFailed as error:
        print(f"going on without --compile: {str(error).splitlines()[0]}", file=sys.stderr)
        return False
    return True


class Trainer:
    """See specs.backend.Trainer."""

    def __init__(self, model, settings, compile, device):
        self.model, self.settings, self.device = model, settings, device
        self.params = dict(model.named_parameters())
        self.optimizer = Optimizer(model.spec, self.params, settings)
        self.scaled = model.dtype == torch.float16
        self.loss_scale = torch.tensor(2.0**16 if self.scaled else 1.0, device=device)
        self.good_steps = torch.tensor(0, device=device)
        self.losses, self.grad_norms, self.loads = [], [], []
        if compile and can_compile():
            for layer in model.layers:
                layer.compile()

    def step(self, batches, lr):
        count = sum(batch.counted for batch in batches)
        size = sum(batch.targets.size for batch in batches)
        total, loads = 0, []
        for batch in batches:
            tokens, targets, key = tensors(batch, self.device)
            x, added, load = training_pass(self.model, tokens, key)
            mean = head_loss(self.model, x, targets) / count
            if self.model.recompute:
                give_back()
            ((mean + added / size) * self.loss_scale).backward()
            total = total + mean.detach()
            loads = summed(loads, load)
        grads = {name: p.grad for name, p in self.params.items()}
        norm = self.clip(grads)
        good = torch.isfinite(total) & torch.isfinite(norm)
        self.optimizer.update(grads, lr, good)
        if self.scaled:
            self.adapt_scale(good)
        for p in self.params.values():
            p.grad = None
        if loads and lr:
            self.model.balance(loads, good)
        self.loads = summed(self.loads, loads)
        self.losses.append(total)
        self.grad_norms.append(norm)

    @torch.no_grad()
    def clip(self, grads):
        """Take the loss scale out of the gradients and bound their norm; the norm before."""
        pieces = (piece for g in grads.values() for piece in g.flatten().split(PIECE))
        norm = torch.sqrt(sum(piece.square().sum() for piece in pieces)) / self.loss_scale
        limit = self.settings.grad_clip
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0) if limit else torch.ones_like(norm)
        torch._foreach_mul_(list(grads.values()), factor / self.loss_scale)
        return norm

    def adapt_scale(self, good):
        grow = good & (self.good_steps + 1 >= GROW_AFTER)
        self.good_steps = torch.where(good & ~grow, self.good_steps + 1, 0)
        factor = torch.where(good, torch.where(grow, 2.0, 1.0), 0.5)
        self.loss_scale = self.loss_scale * factor

    def read(self):
        progress = Progress([loss.item() for loss in self.losses],
                            [norm.item() for norm in self.grad_norms], self.loss_scale.item(),
                            np.stack([load.numpy(force=True) for load in self.loads])
                            if self.loads else None)
        self.losses, self.grad_norms, self.loads = [], [], []
        return progress

    @torch.no_grad()
    def evaluate(self, tokens, targets):
        x = self.model.hidden(carried(tokens, self.device))
        targets = carried(targets, self.device, torch.long)
        loss, right = judged(self.model, x, targets)
        return loss.item(), right.item()

    def state(self):
        state = self.optimizer.state()
        if self.scaled:
            state |= {"loss_scale": self.loss_scale, "loss_scale.good_steps": self.good_steps}
        state = {name: value.numpy(force=True).copy() for name, value in state.items()}
        return state | {"step": state["step"].astype(np.int64)}

    def load_state(self, state):
        state = {name: torch.tensor(value, device=self.device)
                 for name, value in fitting_state(self.state(), state).items()}
        self.optimizer.load_state(state)
        if self.scaled:
            self.loss_scale, self.good_steps = state["loss_scale"], state["loss_scale.good_steps"]
