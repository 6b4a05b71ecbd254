"""A layer of BDH in little memory and in cache: its inner sum and the gradient of it by hand.

The twin is torch_models/bdh_fast.py, the plain form `Block` of bdh.py. What is as wide as the
neurons lives for one tile: a head, some rows of the batch, a slice of its neurons. All is a sum
over slices but the norm between attention and gate, so each direction goes over them twice. From
forward to backward pass a layer keeps x, its scores and what they gave, and computes the neurons
again: eight products with weights where storing them takes six, half of r rᵀ left out. A long text
is cut into spans: scores are those of a span, and for all before it stands the state Σ rᵀx.

Arrays of a slice are (2, ..., m): its even neurons, then its odd ones, the pairs that RoPE turns.
MLX may compute in any order, so each slice is made to wait for what comes before it in its lane.
"""

from itertools import pairwise

import mlx.core as mx

from mlx_models.layers import dropout_words, fold, side_by_side, upcast
from specs.bdh import CHUNK

SLICE = 1024  # neurons and
TOKENS = 512  # tokens of a tile: in float32 2 MiB, about a core's cache
BLOCK = 128  # tokens whose scores are computed together: those after them are left out


def in_tiles(model, x, cos, sin, key):
    """x (B, T, C) through all layers of `model`."""
    weights = cut(model)
    turns = {n.start: (mx.contiguous(cos[:, n]), mx.contiguous(sin[:, n]))
             for n in halves(model.spec.d_state)}
    for i, block in enumerate(model.layers):
        mix = Mix(model, i, turns, fold(key, i))
        own = 0 if model.spec.share_layers else i
        o, _, _, *weights[own] = Tiles(mix)(x, *weights[own])
        x = block.norm(x + block.mlp_norm(o))
    return x


def cut(model):
    """For each layer of its own weights all slices (2, m, C): encoder's, encoder_v's, decoder's."""
    spec = model.spec
    H, N, C = spec.n_head, spec.d_state, spec.n_embd
    layers = 1 if spec.share_layers else spec.n_layer
    starts = [h * N // 2 + n.start for h in range(H) for n in halves(N)]
    into = [((layers, H, C, N // 2, 2), (0, 4, 1, 3, 2))] * 2
    into += [((layers, H, N // 2, 2, C), (0, 3, 1, 2, 4))]

    @mx.custom_function
    def slices(*weights):
        found = []
        for w, (shape, order) in zip(weights, into, strict=True):
            w = w.reshape(shape).transpose(order).reshape(layers, 2, -1, C)
            for own in w:
                found += mx.split(own, starts[1:], axis=1)
        return found

    @slices.vjp
    def join(weights, grads, _):
        """The same backwards, but one weight at a time: all at once would take twice the room."""
        grads, joined = list(grads), []
        for w, (shape, order) in zip(weights, into, strict=True):
            own = [mx.concatenate(grads[i : i + len(starts)], axis=1)[None]
                   for i in range(0, layers * len(starts), len(starts))]
            g = mx.concatenate(own).reshape([shape[axis] for axis in order])
            joined.append(g.transpose([order.index(axis) for axis in range(5)]).reshape(w.shape))
            grads = grads[layers * len(starts) :]
            grads = mx.depends(grads, joined[-1:]) if grads else []
        return joined

    found = slices(model.encoder, model.encoder_v, model.decoder)
    each = [found[i : i + len(starts)] for i in range(0, len(found), len(starts))]
    return [sum(each[layer::layers], []) for layer in range(layers)]


def halves(N):
    """The pairs of neurons of each slice."""
    return [slice(n, min(n + SLICE // 2, N // 2)) for n in range(0, N // 2, SLICE // 2)]


def spans(T, C, window):
    """Stretches of T tokens that see each other pair by pair: one, or several of CHUNK.

    What a neuron costs a token, in multiplications: of scores over all T, T/2 forward and T back;
    of a state 2·C forward and 5·C back. So that wins where 3·T/2 is more than 3·CHUNK/2 + 7·C, but
    not beside a window: it cannot forget.
    """
    span = T if window or 3 * (T - CHUNK) <= 14 * C else CHUNK
    return [slice(t, min(t + span, T)) for t in range(0, T, span)]


class Tiles:
    """x (B, T, C) → Σ_h g_h·decoder_h (B, T, C) of one layer, its scores, what they gave, and the
    weights.

    The weights pass through so that their gradients are added up inside, slice by slice.
    """

    def __init__(self, mix):
        self.mix = mix

    def __call__(self, x, *weights):
        function = mx.custom_function(self.forward)
        function.vjp(self.backward)
        return function(x, *weights)

    def forward(self, x, *weights):
        mix, slices = self.mix, self.mix.heads_of(weights)
        found, ready = [[] for _ in slices], {}
        for lane, h, rows in mix.tiles(*x.shape[:2]):
            with mx.stream(lane):
                x_ = ready.get(lane, x)
                tile = mix.forward(h, rows, x_[rows].astype(mix.dtype), slices[h])
                ready[lane], = mx.depends([x_], [tile[-1]])
            found[h].append(tile)
        scores, attended, o = zip(*([mx.concatenate(each) for each in zip(*tiles, strict=True)]
                                    for tiles in found), strict=True)
        return sum(o) * mix.gain, mx.stack(scores), mx.stack(attended), *weights

    def backward(self, primals, cotangents, outputs):
        mix, (x, *weights), (_, scores, attended, *_) = self.mix, primals, outputs
        do, dx, ready = cotangents[0] * mix.gain, [[] for _ in range(mix.heads)], {}
        grads = [None] * len(weights) if mix.last else cotangents[3:]  # zeros, not to be made
        slices, grads = mix.heads_of(weights), mix.heads_of(grads)
        for lane, h, rows in mix.tiles(*x.shape[:2]):
            with mx.stream(lane):
                x_, do_ = ready.get(lane, (x, do))
                args = x_[rows].astype(mix.dtype), slices[h], scores[h, rows], attended[h, rows]
                more, grads[h] = mix.backward(h, rows, *args, do_[rows], grads[h])
                done = [more, *(g for triple in grads[h] for g in triple)]
                ready[lane] = mx.depends([x_, do_], done)
            dx[h].append(more)
        grads = [triple[kind] for kind in range(3) for head in grads for triple in head]
        return sum(mx.concatenate(each) for each in dx), *grads


class Mix:
    """What the tiles of layer `index` share; turns {first pair: cos and sin (T, m)} of each slice,
    dropout key (B,) or None."""

    def __init__(self, model, index, turns, key):
        spec, block = model.spec, model.layers[index]
        self.norm, self.scale, self.window = block.attn_norm, spec.scale, spec.window
        self.dtype, self.heads = model.dtype, spec.n_head
        self.last = index == spec.n_layer - 1 or not spec.share_layers
        self.slices, self.turns = halves(spec.d_state), turns
        self.spans = spans(len(turns[0][0]), spec.n_embd, spec.window)
        self.gain, self.words = 1.0, None
        if key is not None and spec.dropout:
            shape = spec.n_head, len(key), len(turns[0][0]), spec.d_state
            self.gain = 1 / (1 - spec.dropout)
            row, column, least = dropout_words(shape, spec.dropout, key, batch_axis=1)
            self.words = row, column.reshape(-1, 1, 2).T, least

    def heads_of(self, slices):
        """Per head and slice, the neurons' three weights."""
        kind, head = len(slices) // 3, len(self.slices)
        triples = list(zip(slices[:kind], slices[kind : 2 * kind], slices[2 * kind :], strict=True))
        return [triples[h : h + head] for h in range(0, kind, head)]

    def tiles(self, B, T):
        step, lanes = max(1, TOKENS // T), side_by_side(self.heads)
        return [(lanes[h % len(lanes)], h, slice(b, b + step))
                for h in range(self.heads) for b in range(0, B, step)]

    def forward(self, h, rows, x, slices):
        """Scores (b, T, span), what they give (b, T, C), and o (b, T, C) of a tile."""
        x_, kept, o = x.flatten(0, 1), [], None
        blocks, read = [[] for _ in self.spans], [None] * len(self.spans)
        for n, (e, _, _) in zip(self.slices, slices, strict=True):
            s = relu(x_ @ e.astype(x.dtype).mT)
            r = self.turn(s, n, x.shape)
            for t, each in zip(self.spans, blocks, strict=True):
                each[:] = self.add_scores(each, r[:, :, t])
            read = self.read_states(read, r, x)
            kept.append(s)
            x_, = mx.depends([x_], [*sum(blocks, []), *read[1:]])
        scores = mx.concatenate([self.mask(self.joined(each)) for each in blocks], axis=1)
        attended = [add(read_t, scores_t.astype(x.dtype) @ x[:, t])
                    for (t, scores_t), read_t in zip(self.cut_time(scores), read, strict=True)]
        attended = mx.concatenate(attended, axis=1)
        y = self.norm(attended).flatten(0, 1).astype(x.dtype)
        for n, (_, ev, d) in zip(self.slices, slices, strict=True):
            v = self.drop(relu(y @ ev.astype(x.dtype).mT), h, rows, n)
            o = add(o, ((v * kept.pop(0)) @ d.astype(x.dtype)).sum(0))
            y, = mx.depends([y], [o])
        return scores, attended, o.reshape(x.shape)

    def backward(self, h, rows, x, slices, scores, attended, do, grads):
        """dx (b, T, C) of a tile for the gradient `do` at the output; `grads` and those of it."""
        x_, do_ = x.flatten(0, 1), do.astype(x.dtype).flatten(0, 1)
        y = self.norm(attended).flatten(0, 1).astype(x.dtype)
        dy, kept, half_grads, new_grads = None, [], [], []
        for n, (e, ev, d), (_, dev, dd) in zip(self.slices, slices, grads, strict=True):
            s = relu(x_ @ e.astype(x.dtype).mT)
            v = self.drop(relu(y @ ev.astype(x.dtype).mT), h, rows, n)
            dd = add(dd, (s * v).mT @ do_)
            dg = do_ @ d.astype(x.dtype).mT
            dv = dg * s * mx.sign(v)
            dev = add(dev, dv.mT @ y)
            dy = add(dy, (dv @ ev.astype(x.dtype)).sum(0))
            kept.append((s, dg * v))
            half_grads.append((dev, dd))
            x_, y, do_ = mx.depends([x_, y, do_], [dd, dev, dy, kept[-1][1]])
        dy = dy.reshape(x.shape)
        d_attended = mx.vjp(self.norm, [attended], [dy])[1][0].astype(x.dtype)
        dx, d_scores = [], []
        for t, scores_t in self.cut_time(scores):
            dx.append(upcast(scores_t.astype(x.dtype).mT @ d_attended[:, t]))
            more = self.mask(d_attended[:, t] @ x[:, t].mT)
            d_scores.append(more + more.mT)
        dx = mx.concatenate(dx, axis=1).flatten(0, 1)
        for n, (e, _, _), (de, _, _), more in zip(
                self.slices, slices, grads, half_grads, strict=True):
            s, ds = kept.pop(0)
            r = self.turn(s, n, x.shape)
            dr, read_dx = self.read_states_back(r, x, d_attended, d_scores)
            ds = (ds + self.turn(dr, n, x.shape, back=True).flatten(1, 2)) * mx.sign(s)
            de = add(de, ds.mT @ x_)
            dx = add(dx, (ds @ e.astype(x.dtype)).sum(0)) + read_dx
            new_grads.append((de, *more))
            x_, *d_scores = mx.depends([x_, *d_scores], [de, dx])
        return dx.reshape(x.shape), new_grads

    def cut_time(self, scores):
        """Each span, and its part (b, t, t) of scores (b, T, span)."""
        return [(t, scores[:, t, : t.stop - t.start]) for t in self.spans]

    def read_states(self, read, r, x):
        """Add to `read` (b, t, C) of each span what the tokens of a slice, r (2, b, T, m), read of
        the spans before theirs: a state (2, b, m, C), in at least float32, for its sums grow."""
        state, more = None, read[:1]
        for (before, now), read_t in zip(pairwise(self.spans), read[1:], strict=True):
            state = add(state, upcast(r[:, :, before]).mT @ upcast(x[:, before]))
            more.append(add(read_t, (upcast(r[:, :, now]) @ state).sum(0) * self.scale))
        return more

    def read_states_back(self, r, x, d_attended, d_scores):
        """dr (2, b, T, m) from scores and states, and what these add to dx (b·T, C)."""
        dr = [d_scores_t @ r[:, :, t] for t, d_scores_t in zip(self.spans, d_scores, strict=True)]
        if len(dr) == 1:
            return dr[0], 0
        r, x, d_attended = upcast(r), upcast(x), upcast(d_attended) * self.scale
        state = d_state = None
        for i, (before, now) in enumerate(pairwise(self.spans)):
            state = add(state, r[:, :, before].mT @ x[:, before])
            dr[i + 1] = dr[i + 1] + (d_attended[:, now] @ state.mT).astype(dr[0].dtype)
        dx = [mx.zeros_like(d_attended[:, self.spans[-1]])]
        for i, (now, before) in enumerate(pairwise(reversed(self.spans))):
            d_state = add(d_state, r[:, :, now].mT @ d_attended[:, now])
            dr[-2 - i] = dr[-2 - i] + (x[:, before] @ d_state.mT).astype(dr[0].dtype)
            dx.append((r[:, :, before] @ d_state).sum(0))
        return mx.concatenate(dr, axis=2), mx.concatenate(dx[::-1], axis=1).flatten(0, 1)

    def turn(self, s, n, shape, back=False):
        """RoPE of a slice, (2, b, T, m); `back`: the other way."""
        even, odd = s.reshape(2, *shape[:2], -1)
        cos, sin = self.turns[n.start]
        if back:
            return mx.stack([even * cos + odd * sin, odd * cos - even * sin])
        return mx.stack([even * cos - odd * sin, odd * cos + even * sin])

    def add_scores(self, blocks, r):
        """Add r rᵀ to its blocks of rows, but for what is masked after them."""
        T, more = r.shape[2], []
        for i in range(0, T, BLOCK):
            first = max(0, i - self.window + 1) if self.window else 0
            keys = slice(first, i + BLOCK)
            product = (r[:, :, i : i + BLOCK] @ r[:, :, keys].mT).sum(0)
            more.append(add(blocks.pop(0) if blocks else None, product))
        return more

    def joined(self, blocks):
        """(b, t, span) from the blocks of `add_scores`."""
        T, rows, span = sum(block.shape[1] for block in blocks), [], self.spans[0].stop
        for i, block in enumerate(blocks):
            stop = min((i + 1) * BLOCK, T)
            rows.append(mx.pad(block, [(0, 0), (0, 0), (stop - block.shape[2], span - stop)]))
        return mx.concatenate(rows, axis=1)

    def mask(self, scores):
        scores = mx.tril(scores, -1)
        if self.window:
            scores = mx.triu(scores, 1 - self.window)
        return scores if self.scale == 1 else scores * self.scale

    def drop(self, v, h, rows, n):
        """Zero what dropout drops of v (2, b·T, m); `gain` makes up for it outside."""
        if self.words is None:
            return v
        row, column, least = self.words
        return v * (row[h, rows].reshape(-1, 1) * column[:, :, n] >= least)


def relu(x):
    return mx.maximum(x, 0)


def add(total, more):
    """total + more in at least float32; no total is zero."""
    return upcast(more) if total is None else total + more
