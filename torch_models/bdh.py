"""BDH in PyTorch: see specs/bdh.py for the equations; the twin is mlx_models/bdh.py.

B batch, T time, S keys, C width, H heads, N neurons per head, V vocabulary. Heads come first in
the layout, (H, B, T, N), so that products with the (H, C, N) weights copy nothing.
Products take `dtype` inputs; norms, the residual stream and logits are in at least float32.
"""

import torch
import torch.nn.functional as F
from torch import nn

from specs.bdh import CHUNK
from torch_models.bdh_fast import in_tiles
from torch_models.cache import Rows
from torch_models.layers import PairRotary, dropout, fold, lasting, recompute, unset, upcast


def quadratic_wins(T, C):
    """Whether all scores of T tokens cost less than the state that would stand for them."""
    return T <= 2 * C + CHUNK


class LayerNorm(nn.Module):
    """LayerNorm without weight or bias."""

    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, x):
        return F.layer_norm(upcast(x), x.shape[-1:], None, None, self.eps)


class Neurons(nn.Module):
    """relu(x·weight): x (B, T, C) or (H, B, T, C), weight (H, C, N) → (H, B, T, N)."""

    def forward(self, x, weight):
        H, C, N = weight.shape
        B, T = x.shape[-3:-1]
        return torch.relu(x.reshape(-1, B * T, C) @ weight).reshape(H, B, T, N)


class Attention(nn.Module):
    """Linear attention of r (H, B, T, N) to itself, strictly causal, values x (B, T, C)."""

    def __init__(self, spec):
        super().__init__()
        self.scale = spec.scale
        self.window = spec.window

    def forward(self, r, x, cache=None):
        if cache is not None:
            return cache.attend(self, r, x)
        if self.window or quadratic_wins(*x.shape[1:]):
            return self.quadratic(r, r, x)
        return self.chunkwise(r, x)[0]

    def quadratic(self, q, r, x):
        """The last T of S tokens ask all of them: q (H, B, T, N), r (H, B, S, N), x (B, S, C)."""
        T, S = q.shape[2], r.shape[2]
        scores = torch.tril(q @ r.swapaxes(-1, -2), S - T - 1)
        if self.window:
            scores = torch.triu(scores, S - T - self.window + 1)
        if self.scale != 1:
            scores = scores * self.scale
        return scores @ x

    def chunkwise(self, r, x, state=None, chunk=CHUNK):
        """Quadratic inside a chunk, recurrent between chunks: (output, state after them).

        The state ρ (H, B, N, C) is the sum of rᵀx over all earlier tokens, None for none.
        """
        outputs = []
        for r_i, x_i in zip(r.split(chunk, dim=2), x.split(chunk, dim=1), strict=True):
            y = self.quadratic(r_i, r_i, x_i)
            outputs.append(y if state is None else y + self.read(r_i, state))
            state = self.write(state, r_i, x_i)
        return torch.cat(outputs, dim=2), state

    def recurrent(self, r, x, state=None):
        """One token after the other, each reads before it writes."""
        return self.chunkwise(r, x, state, chunk=1)

    def read(self, r, state):
        return upcast(r) @ state * self.scale

    def write(self, state, r, x):
        update = upcast(r).swapaxes(-1, -2) @ upcast(x)
        return update if state is None else state + update


class KeyCache:
    """What decoding keeps: (r, x) of all tokens, or of those that the window still shows."""

    def __init__(self, window):
        keep = window and window - 1
        self.r, self.x, self.offset = Rows(keep), Rows(keep), 0

    def attend(self, attention, r, x):
        self.offset += r.shape[2]
        return attention.quadratic(r, self.r.append(r), self.x.append(x))

    def arrays(self):
        return {"r": self.r.held(), "x": self.x.held()} if self.offset else {}

    def load(self, arrays, offset, dtype):
        self.offset = offset
        for name, rows in arrays.items():
            getattr(self, name).load(rows.to(dtype), offset - rows.shape[-2])

    @property
    def nbytes(self):
        return self.r.nbytes + self.x.nbytes

    def take(self, index):
        copy = KeyCache(None)
        copy.r, copy.x, copy.offset = self.r.take(index, 1), self.x.take(index, 0), self.offset
        return copy


class StateCache:
    """What decoding keeps: the state ρ (H, B, N, C) and up to `room` tokens not yet written to it.

    Reading ρ is what a token costs; writing it, twice that, is left for many tokens at once.
    """

    def __init__(self, room):
        self.room, self.state, self.offset = room, None, 0
        self.r, self.x = Rows(block=room), Rows(block=room)

    def attend(self, attention, r, x):
        T = r.shape[2]
        self.offset += T
        if self.r.length and self.r.length + T > self.room:
            self.state = attention.write(self.state, self.r.clear(), self.x.clear())
        if T > self.room:
            y, self.state = attention.chunkwise(r, x, self.state)
            return y
        y = attention.quadratic(r, self.r.append(r), self.x.append(x))
        return y if self.state is None else y + attention.read(r, self.state)

    def arrays(self):
        rows = {"r": self.r.held(), "x": self.x.held()} if self.r.length else {}
        return rows if self.state is None else {**rows, "state": self.state}

    def load(self, arrays, offset, dtype):
        self.offset, self.state = offset, arrays.get("state")
        for name in ("r", "x") if "r" in arrays else ():
            getattr(self, name).load(arrays[name].to(dtype))

    @property
    def nbytes(self):
        return (0 if self.state is None else self.state.nbytes) + self.r.nbytes + self.x.nbytes

    def take(self, index):
        copy = StateCache(self.room)
        copy.state = None if self.state is None else self.state.index_select(1, index)
        copy.r, copy.x, copy.offset = self.r.take(index, 1), self.x.take(index, 0), self.offset
        return copy


class Block(nn.Module):
    """One layer: x (B, T, C) → (B, T, C); weights (H, C, N), (H, C, N) and (H, N, C)."""

    def __init__(self, spec):
        super().__init__()
        self.dropout = spec.dropout
        self.encode = Neurons()
        self.rotary = PairRotary()
        self.attn = Attention(spec)
        self.attn_norm = LayerNorm(spec.norm_eps)
        self.mlp_norm = LayerNorm(spec.norm_eps)
        self.norm = LayerNorm(spec.norm_eps)

    def forward(self, x, encoder, encoder_v, decoder, cos, sin, key=None, cache=None):
        dtype = encoder.dtype
        s = self.encode(x.to(dtype), encoder)
        r = self.rotary(s, cos, sin)
        y = self.attn_norm(self.attn(r, x.to(dtype), cache))
        g = s * self.encode(y.to(dtype), encoder_v)
        g = dropout(g, self.dropout, key, batch_axis=1)
        H, B, T, N = g.shape
        o = (g.reshape(H, B * T, N) @ decoder).sum(0).reshape(B, T, -1)
        return self.norm(x + self.mlp_norm(o))


class Model(nn.Module):
    """tokens (B, T) → logits (B, T, V). `key` (B,) int32 turns dropout on."""

    def __init__(self, spec, dtype=torch.float32):
        super().__init__()
        C, H, N, V = spec.n_embd, spec.n_head, spec.d_state, spec.vocab_size
        layers = () if spec.share_layers else (spec.n_layer,)
        self.spec, self.dtype, self.recompute = spec, dtype, False
        self.embed = nn.Embedding(V, C)
        self.encoder = unset(*layers, H, C, N)
        self.encoder_v = unset(*layers, H, C, N)
        self.decoder = unset(*layers, H * N, C)
        self.lm_head = unset(C, V)
        self.embed_norm = LayerNorm(spec.norm_eps)
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.n_layer))
        self._rotary = None, None

    def forward(self, tokens, cache=None, key=None):
        return self.head(self.hidden(tokens, cache, key))

    def hidden(self, tokens, cache=None, key=None):
        """What the head reads, (B, T, C)."""
        cos, sin = self.rotary(cache[0].offset if cache else 0, tokens.shape[1])
        x = self.embed_norm(self.embed(tokens))
        if self.recompute and cache is None:
            x = in_tiles(self, x, cos, sin, key)
        else:
            x = self.plain(x, cos, sin, cache, key)
        return x.to(self.dtype)

    def head(self, x):
        """Logits (B, T, V) of x (B, T, C)."""
        return upcast(x @ self.lm_head.to(self.dtype))

    def plain(self, x, cos, sin, cache, key):
        """The layers one after the other, as the equations say."""
        weights = [w.to(self.dtype) for w in (self.encoder, self.encoder_v, self.decoder)]
        for i, layer in enumerate(self.layers):
            args = (x, *self.layer_weights(weights, i), cos, sin, fold(key, i))
            if cache is not None:
                x = layer(*args, cache[i])
            else:
                x = recompute(layer, *args) if self.recompute else layer(*args)
        return x

    def layer_weights(self, weights, i):
        encoder, encoder_v, decoder = (
            weights if self.spec.share_layers else (w[i] for w in weights))
        return encoder, encoder_v, decoder.reshape(*encoder.shape[::2], -1)

    @lasting
    def rotary(self, start, T):
        """cos and sin for the positions from `start` on, computed once for repeated calls."""
        if self._rotary[0] != (start, T):
            angle = torch.from_numpy(self.spec.rotary(start, T)).to(self.lm_head.device)
            tables = torch.cos(angle).to(self.dtype), torch.sin(angle).to(self.dtype)
            self._rotary = (start, T), tables
        return self._rotary[1]

    def make_cache(self, batch_size=1, length=None, kind="auto"):
        """One cache a layer: "cache", "recurrent", or the cheaper one at `length` tokens."""
        if kind == "auto":
            kind = self.spec.decode_kind(length or self.spec.block_size)
        self.spec.check_decode_kind(kind)
        window, room = self.spec.window, self.spec.unwritten
        return [KeyCache(window) if kind == "cache" else StateCache(room) for _ in self.layers]
