"""Softmax attention in three forms that agree; which of them is how a model runs, not what it is.

    sdpa     the framework's fused kernel, where the device has one
    plain    the formula, all scores (B, H, T, S) at once: what the others are held against
    chunked  blocks of queries and keys with a running softmax, whose scores are computed again in
             the backward pass (Rabe and Staats, arXiv 2112.05682; Dao, arXiv 2307.08691): memory
             O(T·D) besides a few blocks, in both directions

q (B, H, T, D), k (B, Hkv, S, D), v (B, Hkv, S, Dv) → (B, H, T, Dv); query head j reads key head
⌊j·Hkv/H⌋. Products take q's dtype; softmax and sums are in at least float32.
mask: None (everything is seen), "causal" (with S = T), or (T, S) bool that shows no row nothing.
"""

import torch
import torch.nn.functional as F

from specs.errors import UserError
from torch_models.layers import upcast

CHUNK = 256  # queries, and keys, of a block
LOWEST = -1e38  # a score that is not seen: finite, since a whole block's may be the largest so far


def choose(model, form):
    """Have all softmax attention of `model` computed in this form."""
    mixers = [module for module in model.modules() if hasattr(module, "form")]
    if not mixers and form != "sdpa":
        raise UserError(f"{model.spec.arch} has no softmax attention: leave --attention out")
    for mixer in mixers:
        mixer.form = form


def attention(q, k, v, mask, form):
    """softmax(q kᵀ/√D) v in the form "sdpa", "plain" or "chunked"."""
    return {"sdpa": sdpa, "plain": plain, "chunked": chunked}[form](q, k, v, mask)


def sdpa(q, k, v, mask):
    causal, spare = isinstance(mask, str), q.shape[-1] - v.shape[-1]
    if spare > 0:  # fused kernels want one size
        return sdpa(q, k, F.pad(v, (0, spare)), mask)[..., :-spare]
    return F.scaled_dot_product_attention(q, k, v, None if causal else mask, is_causal=causal,
                                          enable_gqa=q.shape[1] != k.shape[1])


def plain(q, k, v, mask):
    k, v = (each_head(y, q.shape[1]) for y in (k, v))
    scores = upcast(q * q.shape[-1] ** -0.5 @ k.mT)  # (B, H, T, S)
    seen = visible(mask, slice(q.shape[2]), slice(k.shape[2]), q.device)
    if seen is not None:
        scores = torch.where(seen, scores, -torch.inf)
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v


def chunked(q, k, v, mask):
    k, v = (each_head(y, q.shape[1]) for y in (k, v))
    return Chunked.apply(q * q.shape[-1] ** -0.5, k, v, mask)


def each_head(y, count):
    """y (B, Hkv, S, D) for each of `count` query heads."""
    return y if y.shape[1] == count else y.repeat_interleave(count // y.shape[1], dim=1)


def visible(mask, rows, columns, device):
    """What these rows see of these columns, bool; None: everything."""
    if not isinstance(mask, str):
        return None if mask is None else mask[rows, columns]
    if columns.stop <= (rows.start or 0) + 1:
        return None
    t, s = (torch.arange(each.start or 0, each.stop, device=device) for each in (rows, columns))
    return s <= t[:, None]


def blocks(T, S, mask):
    """[(rows, [columns, ...]), ...] for all queries, without the keys that none of them sees."""
    rows, columns = ([slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)] for n in (T, S))
    causal = isinstance(mask, str)
    return [(own, columns[: i + 1] if causal else columns) for i, own in enumerate(rows)]


class Chunked(torch.autograd.Function):
    """softmax(q kᵀ) v and its gradient, block by block; what is kept in between is the output and
    the logarithm of each row's sum."""

    @staticmethod
    def forward(ctx, q, k, v, mask):
        y, log_sums = [], []
        for rows, each in blocks(q.shape[2], k.shape[2], mask):
            q_ = q[:, :, rows]
            top = upcast(q_.new_full((*q_.shape[:3], 1), 0.0)) + LOWEST
            total, o = 0, 0
            for columns in each:
                scores = Chunked.scores(q_, k, mask, rows, columns)
                higher = torch.maximum(top, scores.amax(-1, keepdim=True))
                share, fade = torch.exp(scores - higher), torch.exp(top - higher)
                total = total * fade + share.sum(-1, keepdim=True)
                o = o * fade + upcast(share.to(v.dtype) @ v[:, :, columns])
                top = higher
            y.append((o / total).to(v.dtype))
            log_sums.append(top + torch.log(total))
        y, log_sums = torch.cat(y, dim=2), torch.cat(log_sums, dim=2)
        ctx.mask = mask
        ctx.save_for_backward(q, k, v, y, log_sums)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        q, k, v, y, log_sums = ctx.saved_tensors
        own = (upcast(dy) * upcast(y)).sum(-1, keepdim=True)
        dq, dk, dv = (torch.zeros_like(upcast(each)) for each in (q, k, v))
        for rows, each in blocks(q.shape[2], k.shape[2], ctx.mask):
            q_, dy_ = q[:, :, rows], dy[:, :, rows]
            for columns in each:
                k_, v_ = k[:, :, columns], v[:, :, columns]
                scores = Chunked.scores(q_, k, ctx.mask, rows, columns)
                share = torch.exp(scores - log_sums[:, :, rows])
                d_scores = share * (upcast(dy_ @ v_.mT) - own[:, :, rows])
                d_scores, share = d_scores.to(q.dtype), share.to(q.dtype)
                dq[:, :, rows] += d_scores @ k_
                dk[:, :, columns] += d_scores.mT @ q_
                dv[:, :, columns] += share.mT @ dy_
        return *(each.to(q.dtype) for each in (dq, dk, dv)), None

    @staticmethod
    def scores(q, k, mask, rows, columns):
        """Of the queries `q` of these rows, with LOWEST where they see nothing."""
        scores, seen = upcast(q @ k[:, :, columns].mT), visible(mask, rows, columns, q.device)
        return scores if seen is None else torch.where(seen, scores, LOWEST)
