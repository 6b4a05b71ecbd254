"""Training steps without waiting: accumulation, clipping, loss scaling, the optimizer."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_models.layers import settle, side_by_side, total
from mlx_models.loss import head_loss, judged, training_pass
from mlx_models.optim import Optimizer
from specs.backend import Progress, fitting_state
from specs.machine import give_back

GROW_AFTER = 2000  # good steps in float16 before the loss scale is doubled


def arrays(batch, rows=slice(None)):
    """(tokens, targets, key) of these rows of a `Batch`."""
    key = None if batch.keys is None else mx.array(batch.keys[rows])
    return mx.array(batch.tokens[rows]), mx.array(batch.targets[rows]), key


def summed(loads, more):
    """The loads of the experts of each layer, and more of them."""
    return [one + other for one, other in zip(loads, more, strict=True)] if loads else more


class Trainer:
    """See specs.backend.Trainer."""

    def __init__(self, model, settings, compile):
        self.model, self.settings = model, settings
        self.params = dict(tree_flatten(model.trainable_parameters()))
        self.kept = self.untrained()
        self.optimizer = Optimizer(model.spec, self.params, settings)
        self.scaled = model.dtype == mx.float16
        self.loss_scale = mx.array(2.0**16 if self.scaled else 1.0)
        self.good_steps = mx.array(0)
        self.losses, self.grad_norms, self.loads = [], [], []
        self.loss_and_grads, self.compiled = mx.value_and_grad(self.scaled_loss), compile
        if compile:
            self.loss_and_grads = mx.compile(self.loss_and_grads)

    def untrained(self):
        """What the model keeps with its weights and moves by itself."""
        kept = dict(tree_flatten(self.model.parameters()))
        return {name: array for name, array in kept.items() if name not in self.params}

    def scaled_loss(self, params, kept, tokens, targets, key, count, size, loss_scale):
        """(what is differentiated, mean cross-entropy, loads of the experts)."""
        self.model.update(tree_unflatten([*params.items(), *kept.items()]))
        x, added, loads = training_pass(self.model, tokens, key)
        mean = head_loss(self.model, x, targets) / count  # once: mx.compile stumbles over a twin
        return (mean + added / size) * loss_scale, mean, loads

    def step(self, batches, lr):
        count = sum(batch.counted for batch in batches)
        size = sum(batch.targets.size for batch in batches)
        total, grads, loads = 0, None, []
        for batch in batches:
            for stream, rows in self.lanes(len(batch.tokens)):
                with mx.stream(stream):
                    (_, loss, load), more = self.loss_and_grads(
                        self.params, self.kept, *arrays(batch, rows), count, size,
                        self.loss_scale)
                grads = more if grads is None else tree_map(mx.add, grads, more)
                total, loads = total + loss, summed(loads, load)
                del more
            settle([grads, loads])
            if self.model.recompute:
                give_back()
        grads, norm = self.clip(grads)
        good = mx.isfinite(total) & mx.isfinite(norm)
        self.optimizer.update(grads, lr, good)
        if self.scaled:
            self.adapt_scale(good)
        self.model.update(tree_unflatten([*self.params.items(), *self.kept.items()]))
        if loads and lr:
            self.model.balance(loads, good)
            self.kept = self.untrained()
        self.loads = summed(self.loads, loads)
        self.losses.append(total)
        self.grad_norms.append(norm)
        mx.async_eval(self.params, self.kept, self.optimizer.state(), self.loads, total, norm)

    def lanes(self, B):
        """(stream, its rows of B) of what is computed side by side; a step that saves memory, or
        is compiled for one stream, has all in one."""
        streams = side_by_side(1 if self.compiled or self.model.recompute else B)
        cuts = [B * i // len(streams) for i in range(len(streams) + 1)]
        return [(stream, slice(*cut)) for stream, cut in zip(streams, pairwise(cuts), strict=True)]

    def clip(self, grads):
        """Take the loss scale out of the gradients and bound their norm; the norm before."""
        squares = {}
        for name, g in grads.items():
            squares[name] = total(mx.square(g))
            settle(squares[name])
        norm = mx.sqrt(sum(squares.values())) / self.loss_scale
        limit = self.settings.grad_clip
        factor = mx.minimum(limit / (norm + 1e-6), 1.0) if limit else mx.array(1.0)
        factor = factor / self.loss_scale
        return {name: g * factor for name, g in grads.items()}, norm

    def adapt_scale(self, good):
        grow = good & (self.good_steps + 1 >= GROW_AFTER)
        self.good_steps = mx.where(good & ~grow, self.good_steps + 1, 0)
        factor = mx.where(good, mx.where(grow, 2.0, 1.0), 0.5)
        self.loss_scale = self.loss_scale * factor

    def read(self):
        progress = Progress([loss.item() for loss in self.losses],
                            [norm.item() for norm in self.grad_norms], self.loss_scale.item(),
                            np.stack([np.array(load) for load in self.loads])
                            if self.loads else None)
        self.losses, self.grad_norms, self.loads = [], [], []
        return progress

    def evaluate(self, tokens, targets):
        x, targets = self.model.hidden(mx.array(tokens)), mx.array(targets)
        loss, right = judged(self.model, x, targets)
        return loss.item(), right.item()

    def state(self):
        state = self.optimizer.state()
        if self.scaled:
            state |= {"loss_scale": self.loss_scale, "loss_scale.good_steps": self.good_steps}
        state = {name: np.array(value) for name, value in state.items()}
        return state | {"step": state["step"].astype(np.int64)}

    def load_state(self, state):
        state = {name: mx.array(value)
                 for name, value in fitting_state(self.state(), state).items()}
        self.optimizer.load_state(state)
        if self.scaled:
            self.loss_scale, self.good_steps = state["loss_scale"], state["loss_scale.good_steps"]
