"""A layer of BDH in little memory and in cache: its inner sum and the gradient of it by hand.

The twin is mlx_models/bdh_fast.py, the plain form `Block` of bdh.py. What is as wide as the
neurons lives for one tile: a head, some rows of the batch, a slice of its neurons. All is a sum
over slices but the norm between attention and gate, so each direction goes over them twice. From
forward to backward pass a layer keeps x, its scores and what they gave, and computes the neurons
again: eight products with weights where storing them takes six, half of r rᵀ left out. A long text
is cut into spans: scores are those of a span, and for all before it stands the state Σ rᵀx.
"""

from itertools import pairwise

import torch

from specs.bdh import CHUNK
from torch_models.layers import dropout_words, fold, upcast

SLICE = 1024  # neurons and
TOKENS = 512  # tokens of a tile: in float32 2 MiB, about a core's cache
BLOCK = 128  # tokens whose scores are computed together: those after them are left out


def in_tiles(model, x, cos, sin, key):
    """x (B, T, C) through all layers of `model`."""
    grads, turns, memory = [], torch.complex(upcast(cos), upcast(sin)), room(model.spec, x)
    for i, block in enumerate(model.layers):
        mix = Mix(model, i, turns, fold(key, i), grads, memory)
        o = Tiles.apply(mix, x, model.encoder, model.encoder_v, model.decoder)
        x = block.norm(x + block.mlp_norm(o))
    return x


def spans(T, C, window):
    """Stretches of T tokens that see each other pair by pair: one, or several of CHUNK.

    What a neuron costs a token, in multiplications: of scores over all T, T/2 forward and T back;
    of a state 2·C forward and 5·C back. So that wins where 3·T/2 is more than 3·CHUNK/2 + 7·C, but
    not beside a window: it cannot forget.
    """
    span = T if window or 3 * (T - CHUNK) <= 14 * C else CHUNK
    return [slice(t, min(t + span, T)) for t in range(0, T, span)]


def room(spec, x):
    """Memory for the arrays of a tile, which all tiles use one after the other. So it stays in the
    cache, and none is asked for: the first write to a page costs more than the arithmetic on it."""
    B, T, _ = x.shape
    slices = -(-spec.d_state // SLICE)
    tokens, neurons = min(B * T, max(TOKENS, T)), min(SLICE, spec.d_state)
    return x.new_empty(3 + 2 * slices, tokens * neurons)


class Tiles(torch.autograd.Function):
    """x (B, T, C) → Σ_h g_h·decoder_h (B, T, C) of layer `mix.index`."""

    @staticmethod
    def forward(ctx, mix, x, *weights):
        B, T, _ = x.shape
        o = torch.zeros_like(x)
        scores = x.new_zeros(mix.heads, B, T, mix.spans[0].stop)
        attended = x.new_zeros(mix.heads, *x.shape)
        slices = mix.cut(*weights)
        for h, rows in mix.tiles(B, T):
            mix.forward(h, rows, x[rows].to(mix.dtype), slices[h], scores[h, rows],
                        attended[h, rows], o[rows])
        o *= mix.gain
        ctx.mix = mix
        ctx.save_for_backward(x, scores, attended, *weights)
        return o

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do):
        mix = ctx.mix
        x, scores, attended, *weights = ctx.saved_tensors
        do, dx = do * mix.gain, torch.zeros_like(x)
        slices, grads = mix.cut(*weights), mix.cut(*mix.open(weights))
        for h, rows in mix.tiles(*x.shape[:2]):
            mix.backward(h, rows, x[rows].to(mix.dtype), slices[h], scores[h, rows],
                         attended[h, rows], do[rows], dx[rows], grads[h])
        return None, dx, *mix.close()


class Mix:
    """What the tiles of layer `index` share; turns cos + i·sin (T, N/2), dropout key (B,) or None.

    All layers share `room` and `grads`, a list: the gradients of the weights, added up in place
    from the last layer to the first, which gives them out.
    """

    def __init__(self, model, index, turns, key, grads, room):
        spec, block = model.spec, model.layers[index]
        self.norm, self.scale, self.window = block.attn_norm, spec.scale, spec.window
        self.index, self.dtype, self.heads = index, model.dtype, spec.n_head
        self.slices = [slice(n, min(n + SLICE, spec.d_state))
                       for n in range(0, spec.d_state, SLICE)]
        self.spans = spans(len(turns), spec.n_embd, spec.window)
        self.turns, self.grads, self.room = turns, grads, room
        self.gain, self.words = 1.0, None
        if key is not None and spec.dropout:
            shape = spec.n_head, len(key), len(turns), spec.d_state
            self.gain = 1 / (1 - spec.dropout)
            self.words = dropout_words(shape, spec.dropout, key, batch_axis=1)

    def spare(self, i, like, dtype=None):
        """Uninitialised, in the shape of `like`; i is 0, 1 or 2."""
        return self.room[i].view(dtype or like.dtype)[: like.numel()].view(like.shape)

    def kept(self, i, rows):
        """Uninitialised, (rows, n) for each slice; i is 0 or 1."""
        memory = self.room[3 + i * len(self.slices) :].view(self.dtype)
        return [memory[j, : rows * (n.stop - n.start)].view(rows, -1)
                for j, n in enumerate(self.slices)]

    def open(self, weights):
        if not self.grads:
            self.grads += [torch.zeros_like(w) for w in weights]
        return self.grads

    def close(self):
        if self.index:
            return [None] * len(self.grads)
        grads = list(self.grads)
        self.grads.clear()
        return grads

    def cut(self, encoder, encoder_v, decoder):
        """Per head and slice, the neurons' three weights, each (n, C): views."""
        if encoder.ndim == 4:
            encoder, encoder_v, decoder = (w[self.index] for w in (encoder, encoder_v, decoder))
        decoder = decoder.view(self.heads, -1, decoder.shape[-1])
        return [[(e[n], ev[n], d[n]) for n in self.slices]
                for e, ev, d in zip(encoder.mT, encoder_v.mT, decoder, strict=True)]

    def tiles(self, B, T):
        step = max(1, TOKENS // T)
        return [(h, slice(b, b + step)) for h in range(self.heads) for b in range(0, B, step)]

    def forward(self, h, rows, x, slices, scores, attended, o):
        """Fill `scores` (b, T, span) and `attended` (b, T, C), add to `o` (b, T, C)."""
        x_, o_ = x.flatten(0, 1), o.flatten(0, 1)
        kept = self.kept(0, len(x_))
        for n, s, (e, _, _) in zip(self.slices, kept, slices, strict=True):
            torch.mm(x_, e.to(x.dtype).T, out=s).relu_()
            r = self.turn(s, n, x.shape)
            for t, scores_t in self.cut_time(scores):
                self.add_scores(scores_t, r[:, t])
            self.read_states(r, x, attended)
        for t, scores_t in self.cut_time(scores):
            add(attended[:, t], self.mask(scores_t).to(x.dtype), x[:, t])
        y = self.norm(attended).flatten(0, 1).to(x.dtype)
        for n, s, (_, ev, d) in zip(self.slices, kept, slices, strict=True):
            v = torch.mm(y, ev.to(x.dtype).T, out=self.spare(0, s)).relu_()
            v = self.drop(v, h, rows, n)
            add(o_, v.mul_(s), d.to(x.dtype))

    def backward(self, h, rows, x, slices, scores, attended, do, dx, grads):
        """Add to `dx` (b, T, C) and to `grads`, for the gradient `do` at the output."""
        x_, do_, dx_ = x.flatten(0, 1), do.to(x.dtype).flatten(0, 1), dx.flatten(0, 1)
        attended = attended.detach().requires_grad_()
        with torch.enable_grad():
            normed = self.norm(attended)
        y = normed.detach().flatten(0, 1).to(x.dtype)
        dy = torch.zeros_like(dx_)
        kept = [self.kept(i, len(x_)) for i in range(2)]
        for n, s, ds, (e, ev, d), (_, dev, dd) in zip(
                self.slices, *kept, slices, grads, strict=True):
            torch.mm(x_, e.to(x.dtype).T, out=s).relu_()
            v = torch.mm(y, ev.to(x.dtype).T, out=self.spare(0, s)).relu_()
            v = self.drop(v, h, rows, n)
            add(dd, torch.mul(s, v, out=self.spare(1, s)).T, do_)
            dg = torch.mm(do_, d.to(x.dtype).T, out=self.spare(1, s))
            torch.mul(dg, v, out=ds)
            dv = where_positive(dg.mul_(s), v)
            add(dev, dv.T, y)
            add(dy, dv, ev.to(x.dtype))
        d_attended, = torch.autograd.grad(normed, attended, dy.view_as(normed))
        d_attended, d_scores = d_attended.to(x.dtype), []
        for t, scores_t in self.cut_time(scores):
            add(dx[:, t], scores_t.to(x.dtype).mT, d_attended[:, t])
            more = self.mask(d_attended[:, t] @ x[:, t].mT)
            d_scores.append(more + more.mT)
        for n, s, ds, (e, _, _), (de, _, _) in zip(
                self.slices, *kept, slices, grads, strict=True):
            r = self.turn(s, n, x.shape)
            dr = self.spare(1, r)
            for t, d_scores_t in zip(self.spans, d_scores, strict=True):
                torch.bmm(d_scores_t, r[:, t], out=dr[:, t])
            self.read_states_back(r, x, d_attended, dr, dx)
            ds += self.turn(dr, n, x.shape, back=True).flatten(0, 1)
            where_positive(ds, s)
            add(de, ds.T, x_)
            add(dx_, ds, e.to(x.dtype))

    def cut_time(self, scores):
        """Each span, and its part (b, t, t) of scores (b, T, span)."""
        return [(t, scores[:, t, : t.stop - t.start]) for t in self.spans]

    def read_states(self, r, x, attended):
        """Add to `attended` what the tokens of a slice, r (b, T, n), read of the spans before
        theirs: a state (b, n, C), in at least float32, for its sums grow."""
        state = 0
        for before, now in pairwise(self.spans):
            state = state + upcast(r[:, before]).mT @ upcast(x[:, before])
            add(attended[:, now], upcast(r[:, now]), state, self.scale)

    def read_states_back(self, r, x, d_attended, dr, dx):
        """Add to `dr` (b, T, n) and to `dx` (b, T, C)."""
        r, x, d_attended = upcast(r), upcast(x), upcast(d_attended)
        state = d_state = 0
        for before, now in pairwise(self.spans):
            state = state + r[:, before].mT @ x[:, before]
            add(dr[:, now], d_attended[:, now], state.mT, self.scale)
        for now, before in pairwise(reversed(self.spans)):
            d_state = d_state + r[:, now].mT @ d_attended[:, now] * self.scale
            add(dr[:, before], x[:, before], d_state.mT)
            add(dx[:, before], r[:, before], d_state)

    def turn(self, s, n, shape, back=False):
        """RoPE of a slice, (b, T, n): a product of complex numbers; `back`: the other way."""
        turns = self.turns[:, n.start // 2 : n.stop // 2]
        pairs = torch.view_as_complex(upcast(s).view(*shape[:2], -1, 2))
        turns = turns.conj() if back else turns
        turned = torch.mul(pairs, turns, out=self.spare(0, pairs))
        return torch.view_as_real(turned).flatten(2).to(s.dtype)

    def add_scores(self, scores, r):
        """Add r rᵀ, but for blocks that are masked."""
        for i in range(0, r.shape[1], BLOCK):
            first = max(0, i - self.window + 1) if self.window else 0
            keys = slice(first, i + BLOCK)
            for scores_b, r_b in zip(scores, r, strict=True):
                add(scores_b[i : i + BLOCK, keys], r_b[i : i + BLOCK], r_b[keys].T)

    def mask(self, scores):
        scores = scores.tril_(-1)
        if self.window:
            scores = scores.triu_(1 - self.window)
        return scores if self.scale == 1 else scores.mul_(self.scale)

    def drop(self, v, h, rows, n):
        """Zero what dropout drops of v (b·T, n); `gain` makes up for it outside."""
        if self.words is None:
            return v
        row, column, least = self.words
        words = self.spare(1, v, torch.int32)
        torch.mul(row[h, rows].reshape(-1, 1), column[n], out=words).ge_(least)
        return v.mul_(self.spare(2, v).copy_(words))


def where_positive(x, s):
    """x, which keeps its values where s > 0 and is 0 elsewhere: the gradient of relu."""
    return torch.ops.aten.threshold_backward.grad_input(x, s, 0, grad_input=x)


def add(total, a, b, factor=1):
    """total += factor·a b, two or all three of them with a batch in front, without a copy of the
    product where no cast is needed."""
    if a.dtype != total.dtype:
        total += a @ b * factor
    elif total.ndim == 2:
        total.addmm_(a, b, alpha=factor)
    else:
        total.baddbmm_(a, b, alpha=factor)
