"""Next-token cross-entropy and the count of right first guesses.

Of a large vocabulary never all logits exist at once: they are made, judged and forgotten by
pieces, and in training the gradient of a piece is taken as soon as its loss is known.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_models.layers import total, upcast

PIECE = 2**24  # logits at once: 64 MiB in float32


def cross_entropy(logits, targets):
    """Sum over all positions, in nats: logits (B, T, V), targets (B, T); −1 counts for nothing."""
    nats = nn.losses.cross_entropy(upcast(logits), mx.maximum(targets, 0))
    return total(mx.where(targets < 0, 0.0, nats))


def mean_cross_entropy(logits, targets):
    """The same over their number."""
    return cross_entropy(logits, targets) / mx.sum(targets >= 0)


def training_pass(model, tokens, key):
    """(what the head reads, what training adds to the summed cross-entropy, [load of each layer's
    experts])."""
    if not model.spec.routed:
        return model.hidden(tokens, key=key), 0.0, []
    routed = []
    x = model.hidden(tokens, key=key, routed=routed)
    return x, sum(penalty for penalty, _ in routed), [load for _, load in routed]


def head_loss(model, x, targets):
    """`cross_entropy` of what the head makes of x (B, T, C)."""
    if fits(model, targets):
        return cross_entropy(model.head(x), targets)
    return InPieces(model)(dict(tree_flatten(model.parameters()))[model.spec.head_name], x, targets)


def judged(model, x, targets):
    """(cross-entropy, right first guesses), both summed, of what the head makes of x (B, T, C)."""
    loss, right = 0, 0
    for x_i, targets_i in [(x, targets)] if fits(model, targets) else pieces(model, x, targets):
        logits = model.head(x_i)
        loss = loss + cross_entropy(logits, targets_i)
        right = right + right_guesses(logits, targets_i)
        mx.eval(loss, right)
    return loss, right


def right_guesses(logits, targets):
    """How often the largest logit (the first of equals) is the target's."""
    return mx.sum(logits.argmax(-1) == targets)


def fits(model, targets):
    return targets.size * model.spec.vocab_size <= PIECE


def pieces(model, x, targets):
    """x (1, n, C) and targets (1, n), n tokens at a time."""
    n = max(1, PIECE // model.spec.vocab_size)
    x, targets = x.reshape(1, -1, x.shape[-1]), targets.reshape(1, -1)
    cuts = range(n, targets.size, n)
    return zip(mx.split(x, list(cuts), axis=1), mx.split(targets, list(cuts), axis=1), strict=True)


class InPieces:
    """The loss of (the head's weight, x, targets), with its gradient."""

    def __init__(self, model):
        self.model = model

    def __call__(self, *inputs):
        function = mx.custom_function(self.forward)
        function.vjp(self.backward)
        return function(*inputs)[0]

    def forward(self, weight, x, targets):
        loss, d_weight, d_x = mx.array(0.0), mx.zeros_like(weight), []
        for x_i, targets_i in pieces(self.model, x, targets):
            x_i = mx.depends(x_i, [loss, d_weight, *d_x])  # or all would be held at once
            more, grads = mx.value_and_grad(self.piece, (0, 1))(weight, x_i, targets_i)
            loss, d_weight = loss + more, d_weight + grads[0]
            d_x.append(grads[1])
        self.put(weight)
        return loss, d_weight, mx.concatenate(d_x, axis=1).reshape(x.shape)

    def piece(self, weight, x, targets):
        self.put(weight)
        return cross_entropy(self.model.head(x), targets)

    def put(self, weight):
        self.model.update(tree_unflatten([(self.model.spec.head_name, weight)]))

    def backward(self, inputs, cotangents, outputs):
        _, d_weight, d_x = outputs
        return cotangents[0] * d_weight, cotangents[0].astype(d_x.dtype) * d_x, None
