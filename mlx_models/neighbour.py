"""The same model in mlx_lm, trained and decoded as its users do: what we are measured by."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model


class Neighbour:
    """The model of a folder in upstream's format, in float32 on MLX's default device."""

    def __init__(self, folder, compile=False):
        self.model, _ = load_model(folder)
        self.model.train()
        self.optimizer = mlx.optimizers.AdamW(1e-4, weight_decay=0.1, bias_correction=True)
        self.state = [self.model.state, self.optimizer.state]
        self.update = self.once
        if compile:
            self.update = partial(mx.compile, inputs=self.state, outputs=self.state)(self.once)

    def loss(self, model, tokens, targets):
        return nn.losses.cross_entropy(model(tokens), targets, reduction="mean")

    def once(self, tokens, targets):
        loss, grads = nn.value_and_grad(self.model, self.loss)(self.model, tokens, targets)
        grads, _ = mlx.optimizers.clip_grad_norm(grads, 1.0)
        self.optimizer.update(self.model, grads)
        return loss

    def step(self, tokens, targets):
        """One training step on tokens and targets (B, T); the loss."""
        loss = self.update(mx.array(tokens), mx.array(targets))
        mx.eval(loss, self.state)
        return loss.item()

    def decode(self, prompt):
        """Greedy tokens after prompt (1, T), one at a time, in mlx_lm's loop with its cache."""
        self.model.eval()
        for token, _ in generate_step(mx.array(prompt[0]), self.model, max_tokens=-1):
            yield token
