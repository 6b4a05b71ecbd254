"""Next-token cross-entropy and the count of right first guesses."""

import mlx.core as mx
import mlx.nn as nn

from mlx_models.layers import total, upcast


def cross_entropy(logits, targets):
    """Sum over all positions, in nats: logits (B, T, V), targets (B, T); −1 counts for nothing."""
    nats = nn.losses.cross_entropy(upcast(logits), mx.maximum(targets, 0))
    return total(mx.where(targets < 0, 0.0, nats))


def mean_cross_entropy(logits, targets):
    """The same over their number."""
    return cross_entropy(logits, targets) / mx.sum(targets >= 0)


def training_pass(model, tokens, key):
    """(logits, what training adds to the summed cross-entropy, [load of each layer's experts])."""
    if not model.spec.routed:
        return model(tokens, key=key), 0.0, []
    routed = []
    logits = model(tokens, key=key, routed=routed)
    return logits, sum(penalty for penalty, _ in routed), [load for _, load in routed]


def right_guesses(logits, targets):
    """How often the largest logit (the first of equals) is the target's."""
    return mx.sum(logits.argmax(-1) == targets)
