"""Next-token cross-entropy and the count of right first guesses.

Of a large vocabulary never all logits exist at once: they are made, judged and forgotten by
pieces, and in training the gradient of a piece is taken as soon as its loss is known.
"""

import torch
import torch.nn.functional as F

from torch_models.layers import upcast

PIECE = 2**24  # logits at once: 64 MiB in float32


def cross_entropy(logits, targets):
    """Sum over all positions, in nats: logits (B, T, V), targets (B, T); −1 counts for nothing."""
    return F.cross_entropy(upcast(logits).flatten(0, 1), targets.flatten(), reduction="sum",
                           ignore_index=-1)


def mean_cross_entropy(logits, targets):
    """The same over their number."""
    return cross_entropy(logits, targets) / torch.sum(targets >= 0)


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
    return InPieces.apply(model, model.get_parameter(model.spec.head_name), x, targets)


def judged(model, x, targets):
    """(cross-entropy, right first guesses), both summed, of what the head makes of x (B, T, C)."""
    loss, right = 0, 0
    for x_i, targets_i in [(x, targets)] if fits(model, targets) else pieces(model, x, targets):
        logits = model.head(x_i)
        loss = loss + cross_entropy(logits, targets_i)
        right = right + right_guesses(logits, targets_i)
    return loss, right


def right_guesses(logits, targets):
    """How often the largest logit (the first of equals) is the target's."""
    return torch.sum(logits.argmax(-1) == targets)


def fits(model, targets):
    return targets.numel() * model.spec.vocab_size <= PIECE


def pieces(model, x, targets):
    """x (1, n, C) and targets (1, n), n tokens at a time."""
    n = max(1, PIECE // model.spec.vocab_size)
    x, targets = x.reshape(1, -1, x.shape[-1]), targets.reshape(1, -1)
    return zip(x.split(n, dim=1), targets.split(n, dim=1), strict=True)


class InPieces(torch.autograd.Function):
    """The loss of (the head's weight, x, targets), with its gradient."""

    @staticmethod
    def forward(ctx, model, weight, x, targets):
        loss, d_weight, d_x = 0, torch.zeros_like(weight), []
        for x_i, targets_i in pieces(model, x, targets):
            with torch.enable_grad():
                x_i = x_i.detach().requires_grad_()
                more = cross_entropy(model.head(x_i), targets_i)
            grads = torch.autograd.grad(more, (weight, x_i))
            loss, d_weight = loss + more.detach(), d_weight.add_(grads[0])
            d_x.append(grads[1])
        ctx.save_for_backward(d_weight, torch.cat(d_x, dim=1).reshape(x.shape))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        d_weight, d_x = ctx.saved_tensors
        return None, grad * d_weight, grad.to(d_x.dtype) * d_x, None
