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

import mlx.core as mx

from mlx_models.layers import upcast
from specs.errors import UserError

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
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)


def plain(q, k, v, mask):
    k, v = (each_head(y, q.shape[1]) for y in (k, v))
    scores = upcast(q * q.shape[-1] ** -0.5 @ k.mT)  # (B, H, T, S)
    seen = visible(mask, slice(q.shape[2]), slice(k.shape[2]))
    if seen is not None:
        scores = mx.where(seen, scores, -mx.inf)
    return mx.softmax(scores, axis=-1).astype(v.dtype) @ v


def chunked(q, k, v, mask):
    k, v = (each_head(y, q.shape[1]) for y in (k, v))
    return Chunked(mask)(q * q.shape[-1] ** -0.5, k, v)


def each_head(y, count):
    """y (B, Hkv, S, D) for each of `count` query heads."""
    return y if y.shape[1] == count else mx.repeat(y, count // y.shape[1], axis=1)


def visible(mask, rows, columns):
    """What these rows see of these columns, bool; None: everything."""
    if not isinstance(mask, str):
        return None if mask is None else mask[rows, columns]
    if columns.stop <= (rows.start or 0) + 1:
        return None
    t, s = (mx.arange(each.start or 0, each.stop) for each in (rows, columns))
    return s <= t[:, None]


def blocks(T, S, mask):
    """[(rows, [columns, ...]), ...] for all queries, without the keys that none of them sees."""
    rows, columns = ([slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)] for n in (T, S))
    causal = isinstance(mask, str)
    return [(own, columns[: i + 1] if causal else columns) for i, own in enumerate(rows)]


class Chunked:
    """softmax(q kᵀ) v and its gradient, block by block; what is kept in between is the output and
    the logarithm of each row's sum. MLX may compute in any order, so each block is made to wait
    for the one before it."""

    def __init__(self, mask):
        self.mask = mask

    def __call__(self, q, k, v):
        function = mx.custom_function(self.forward)
        function.vjp(self.backward)
        return function(q, k, v)[0]

    def forward(self, q, k, v):
        y, log_sums = [], []
        for rows, each in blocks(q.shape[2], k.shape[2], self.mask):
            q_ = q[:, :, rows]
            top, total, o = LOWEST, 0, 0
            for columns in each:
                scores = self.scores(q_, k, rows, columns)
                higher = mx.maximum(top, scores.max(-1, keepdims=True))
                share, fade = mx.exp(scores - higher), mx.exp(top - higher)
                total = total * fade + share.sum(-1, keepdims=True)
                o = o * fade + upcast(share.astype(v.dtype) @ v[:, :, columns])
                top = higher
                q_, = mx.depends([q_], [o, total])
            y.append((o / total).astype(v.dtype))
            log_sums.append(top + mx.log(total))
            q, = mx.depends([q], [y[-1], log_sums[-1]])
        return mx.concatenate(y, axis=2), mx.concatenate(log_sums, axis=2)

    def backward(self, primals, cotangents, outputs):
        (q, k, v), (y, log_sums), dy = primals, outputs, cotangents[0]
        own = (upcast(dy) * upcast(y)).sum(-1, keepdims=True)
        dq, dk, dv = [], {}, {}
        for rows, each in blocks(q.shape[2], k.shape[2], self.mask):
            q_, dy_, more = q[:, :, rows], dy[:, :, rows], 0
            for columns in each:
                k_, v_, at = k[:, :, columns], v[:, :, columns], columns.start
                share = mx.exp(self.scores(q_, k, rows, columns) - log_sums[:, :, rows])
                d_scores = share * (upcast(dy_ @ v_.mT) - own[:, :, rows])
                d_scores, share = d_scores.astype(q.dtype), share.astype(q.dtype)
                more = more + upcast(d_scores @ k_)
                dk[at] = dk.get(at, 0) + upcast(d_scores.mT @ q_)
                dv[at] = dv.get(at, 0) + upcast(share.mT @ dy_)
                q_, dy_ = mx.depends([q_, dy_], [more, dk[at], dv[at]])
            dq.append(more.astype(q.dtype))
            q, dy = mx.depends([q, dy], [more, dk[at], dv[at]])
        return mx.concatenate(dq, axis=2), *(
            mx.concatenate(list(each.values()), axis=2).astype(q.dtype) for each in (dk, dv))

    def scores(self, q, k, rows, columns):
        """Of the queries `q` of these rows, with LOWEST where they see nothing."""
        scores, seen = upcast(q @ k[:, :, columns].mT), visible(self.mask, rows, columns)
        return scores if seen is None else mx.where(seen, scores, LOWEST)
