"""Next-token cross-entropy and the count of right first guesses."""

import torch
import torch.nn.functional as F

from torch_models.layers import upcast


def cross_entropy(logits, targets):
    """Sum over all positions, in nats: logits (B, T, V), targets (B, T); −1 counts for nothing."""
    return F.cross_entropy(upcast(logits).flatten(0, 1), targets.flatten(), reduction="sum",
                           ignore_index=-1)


def mean_cross_entropy(logits, targets):
    """The same over their number."""
    return cross_entropy(logits, targets) / torch.sum(targets >= 0)


def training_pass(model, tokens, key):
    """(logits, what training adds to the summed cross-entropy, [load of each layer's experts])."""
    if not model.spec.routed:
        return model(tokens, key=key), 0.0, []
    routed = []
    logits = model(tokens, key=key, routed=routed)
    return logits, sum(penalty for penalty, _ in routed), [load for _, load in routed]


def right_guesses(logits, targets):
    """How often the largest logit (the first of equals) is the target's."""
    return torch.sum(logits.argmax(-1) == targets)
