"""moe in PyTorch: see specs/moe.py for the equations; the twin is mlx_models/moe.py.

B batch, T time, C width, E experts, k of them chosen by a token, F width of an expert,
V vocabulary. Products take `dtype` inputs; the router, norms, rotation, softmax, the residual
stream and logits are in at least float32.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from specs.moe import BALANCE_STEP
from torch_models import gpt, grouped
from torch_models.layers import Linear, dropout, fold, noise, recompute, unset, upcast

ACTIVATIONS = {**gpt.ACTIVATIONS, "silu": F.silu}


class Experts(nn.Module):
    """The sum of the chosen experts' outputs for x (B, T, C), weighted by share (B, T, k)."""

    def __init__(self, spec):
        super().__init__()
        C, E, width = spec.n_embd, spec.n_experts, spec.expert_width
        self.n_experts = E
        self.activation, self.gated = ACTIVATIONS[spec.expert_mlp], spec.expert_mlp == "swiglu"
        if self.gated:
            self.gate_proj = unset(E, width, C)
        self.up_proj = unset(E, width, C)
        self.down_proj = unset(E, C, width)

    def forward(self, x, chosen, share):
        if x.dtype == torch.float64:  # what all else is held against is the plain form
            return self.plain(x, chosen, share)
        if torch.compiler.is_compiling() and grouped.at_hand(x):  # compiled code cannot ask
            return torch.compiler.disable(self.in_groups)(x, chosen, share)
        return self.in_groups(x, chosen, share)

    def plain(self, x, chosen, share):
        """Every expert reads every token."""
        y = self.mlp(x.reshape(1, -1, x.shape[-1]), grouped.every_product)
        mine = grouped.one_hot(chosen, self.n_experts)  # (B, T, k, E)
        weight = (mine * share[..., None]).sum(-2).reshape(-1, self.n_experts)
        y = (upcast(y) * weight.T[..., None]).sum(0)
        return y.reshape(x.shape).to(x.dtype)

    def in_groups(self, x, chosen, share):
        """The rows of each expert lie together: the cost is that of the chosen ones."""
        each, flat = grouped.copies(x, chosen), chosen.reshape(-1)
        if x.shape[1] == 1 and len(flat) <= self.n_experts:  # a token of a few sequences
            y = self.mlp(each, partial(grouped.one_by_one, chosen=flat))
        else:
            block = grouped.block_size(flat, self.n_experts)
            place, ends, rows = grouped.layout(flat, self.n_experts, block)
            product = partial(grouped.product, ends=ends, block=block)
            y = grouped.collect(self.mlp(grouped.spread(each, place, rows), product), place)
        y = upcast(y).reshape(*chosen.shape, x.shape[-1])
        return (y * share[..., None]).sum(-2).to(x.dtype)

    def mlp(self, x, product):
        h = self.activation(product(x, self.gate_proj if self.gated else self.up_proj))
        return product(h * product(x, self.up_proj) if self.gated else h, self.down_proj)


class MixtureOfExperts(nn.Module):
    """x (B, T, C) in at least float32 → (B, T, C) in `dtype`."""

    def __init__(self, spec, dtype):
        super().__init__()
        self.spec, self.dtype = spec, dtype
        self.router = Linear(spec.n_embd, spec.n_experts, bias=False)
        self.experts = Experts(spec)
        if spec.n_shared_experts:
            self.shared = gpt.MLP(spec)
        if spec.balance == "bias":
            self.balance_bias = nn.Buffer(torch.zeros(spec.n_experts))

    def forward(self, x, key=None, routed=False):
        """With `routed` also what joins the loss, and the load of each expert."""
        logits = self.router(x)  # (B, T, E)
        if key is not None and self.spec.router_noise:
            logits = logits + self.spec.router_noise * noise(logits, key)
        p = torch.softmax(logits, dim=-1)
        chosen = self.choose(p)  # (B, T, k)
        share = torch.take_along_dim(p, chosen, dim=-1)
        if self.spec.norm_topk_prob:
            share = share / share.sum(-1, keepdim=True)
        x = x.to(self.dtype)
        y = self.experts(x, chosen, share)
        if self.spec.n_shared_experts:
            y = y + self.shared(x)
        return (y, *self.penalty(logits, p, chosen)) if routed else y

    def choose(self, p):
        """The k experts of each token, in the order of their numbers."""
        k, scores = self.spec.n_experts_per_tok, p.detach()
        if self.spec.balance == "bias":
            scores = scores + self.balance_bias
        return grouped.largest(scores, k)

    def penalty(self, logits, p, chosen):
        """(what joins the cross-entropy, summed over all positions; assignments (E,))."""
        E, T = self.spec.n_experts, p.shape[1]
        mine = grouped.one_hot(chosen, E).sum(-2)  # (B, T, E)
        load = mine.sum((0, 1))
        share = mine.sum(1) / (T * self.spec.n_experts_per_tok)  # of each row
        balance = E * (share * p.mean(1)).sum()
        z = torch.square(torch.logsumexp(logits, dim=-1)).mean(1).sum()
        return T * (self.spec.balance_coef * balance + self.spec.z_loss_coef * z), load


class Block(gpt.Block):
    """One layer: x (B, T, C) → (B, T, C)."""

    def forward(self, x, cos, sin, mask, key=None, cache=None, routed=False):
        """With `routed` also what the mixture of experts tells then."""
        h = self.mixer(self.mixer_norm(x).to(self.dtype), cos, sin, mask, cache)
        x = x + dropout(h, self.dropout, fold(key, 0))
        h = self.mlp(self.mlp_norm(x), fold(key, 2), routed)
        h, *told = h if routed else (h,)
        x = x + dropout(h, self.dropout, fold(key, 1))
        return (x, *told) if routed else x


class Model(gpt.Model):
    """tokens (B, T) → logits (B, T, V). `key` (B,) int32 turns dropout and router noise on."""

    def block(self, i):
        spec, dtype = self.spec, self.dtype
        return Block(spec, dtype, gpt.Attention(spec), MixtureOfExperts(spec, dtype))

    def hidden(self, tokens, cache=None, key=None, routed=None):
        """What the head reads, (B, T, C); the list `routed` is given (what joins the loss, load) of
        each layer."""
        if routed is None:
            return super().hidden(tokens, cache, key)
        x, context = self.enter(tokens, None, key)
        for i, layer in enumerate(self.layers):
            args = (x, *context, fold(key, i), None, True)
            x, *told = recompute(layer, *args) if self.recompute else layer(*args)
            routed.append(told)
        return self.leave(x)

    def embedded(self, tokens, start):
        x = super().embedded(tokens, start)
        return x * self.spec.n_embd**0.5 if self.spec.embed_scale else x

    def balance(self, loads, good):
        """Move the balance biases one step towards equal load, where `good` is true."""
        for layer, load in zip(self.layers, loads, strict=True):
            if self.spec.balance == "bias":
                away = torch.sign(load.sum() - load * self.spec.n_experts)
                layer.mlp.balance_bias += BALANCE_STEP * (away * good)
