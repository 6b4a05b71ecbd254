"""BDH, Baby Dragon Hatchling (Kosowski et al., arXiv 2509.26507), for mlx_lm.

It lies beside the config.json whose "model_file" names it. It needs mlx_lm alone, which runs it
when told to: `mlx_lm.load(path, trust_remote_code=True)`, or --trust-remote-code.

    x = LN(embed)                        LN is LayerNorm without weight or bias
    n_layer times, with the same weights unless share_layers is false:
        s = relu(encoder x)              (B, H, T, N)
        r = RoPE(s)                      on adjacent pairs
        y = LN(tril(r rᵀ, −1) x)         (B, H, T, C), no softmax; a token never sees itself
        x = LN(x + LN(decoder(s ⊙ relu(encoder_v y))))
    logits = lm_head x

Without a softmax the state ρ = Σ rᵀx, (N × C) per head and layer, stands for all tokens read: it
is what the cache holds, so memory does not grow with the text. Products with weights are in the
weights' dtype; norms, the residual stream and attention, whose sums grow, are in float32.
B batch, T time, C width, H heads, N neurons per head.
"""

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import ArraysCache
from mlx_lm.models.mla import MultiLinear

CHUNK = 256  # tokens; a longer chunk costs more scores, a shorter one more reads of the state


@dataclass
class ModelArgs(BaseModelArgs):
    model_type: str = "bdh"
    vocab_size: int = 256
    n_layer: int = 6
    n_embd: int = 256
    n_head: int = 4
    mlp_internal_dim_multiplier: int = 128
    norm_eps: float = 1e-5
    share_layers: bool = True
    score_scale: str = "none"

    @property
    def neurons(self):
        return self.mlp_internal_dim_multiplier * self.n_embd // self.n_head


def rotate(s, cos, sin):
    """RoPE on adjacent pairs of s (B, H, T, N), with cos and sin (B, 1, T, N/2)."""
    even, odd = s[..., 0::2], s[..., 1::2]
    pairs = (even * cos - odd * sin, odd * cos + even * sin)
    return mx.stack(pairs, axis=-1).reshape(s.shape)


def attend(r, x, state):
    """(tril(r rᵀ, −1) x + r ρ, ρ + rᵀ x) for r (B, H, T, N) and x (B, 1, T, C).

    All pairs of tokens inside a chunk; ρ (B, H, N, C), None for zero, for all before it.
    """
    outputs = []
    for start in range(0, r.shape[2], CHUNK):
        r_i, x_i = (a[:, :, start : start + CHUNK] for a in (r, x))
        y = mx.tril(r_i @ r_i.swapaxes(-1, -2), -1) @ x_i
        outputs.append(y if state is None else y + r_i @ state)
        update = r_i.swapaxes(-1, -2) @ x_i
        state = update if state is None else state + update
    return mx.concatenate(outputs, axis=2), state


class Block(nn.Module):
    """One layer: x (B, T, C) float32 → (B, T, C)."""

    def __init__(self, args):
        super().__init__()
        C, H, N = args.n_embd, args.n_head, args.neurons
        self.n_head, self.eps = H, args.norm_eps
        self.scale = N ** {"none": 0.0, "sqrt": -0.5, "linear": -1.0}[args.score_scale]
        self.encoder = nn.Linear(C, H * N, bias=False)
        self.encoder_v = MultiLinear(C, N, H)  # a matrix for each head
        self.decoder = nn.Linear(H * N, C, bias=False)

    def __call__(self, x, dtype, cos, sin, mask, cache):
        B, T, _ = x.shape
        s = nn.relu(self.encoder(x.astype(dtype)))
        s = s.reshape(B, T, self.n_head, -1).swapaxes(1, 2)  # (B, H, T, N)
        r = rotate(s, cos, sin)
        if mask is not None:  # padding writes nothing
            r = mx.where(mask[:, None, :, None], r, 0)
        y, state = attend(r, x[:, None], None if cache is None else cache[0])
        if cache is not None:
            cache[0] = state
            cache.advance(T)
        g = s * nn.relu(self.encoder_v(self.norm(y * self.scale).astype(dtype)))
        o = self.decoder(g.swapaxes(1, 2).reshape(B, T, -1))
        return self.norm(x + self.norm(o))

    def norm(self, x):
        return mx.fast.layer_norm(x.astype(mx.float32), None, None, self.eps)


class Model(nn.Module):
    """inputs (B, T) → logits (B, T, V)."""

    def __init__(self, args):
        super().__init__()
        self.args, self.model_type = args, args.model_type
        self.embed = nn.Embedding(args.vocab_size, args.n_embd)
        self.layers = [Block(args) for _ in range(1 if args.share_layers else args.n_layer)]
        self.lm_head = nn.Linear(args.n_embd, args.vocab_size, bias=False)
        with mx.stream(mx.cpu):  # rounded to float32 at each step, as the model was trained
            exponent = mx.arange(0, args.neurons, 2) / args.neurons
            power = mx.array([65536.0**e for e in exponent.tolist()])
            self._frequency = 1 / power / (2 * math.pi)  # turns per token
            mx.eval(self._frequency)  # a thread of a server has no stream for it

    def __call__(self, inputs, cache=None):
        cache = cache or [None] * self.args.n_layer
        cos, sin, mask = self.positions(inputs, cache[0])
        x = self.embed(inputs)
        dtype = x.dtype
        x = self.layers[0].norm(x)
        for i in range(self.args.n_layer):
            x = self.layers[i % len(self.layers)](x, dtype, cos, sin, mask, cache[i])
        return self.lm_head(x.astype(dtype))

    def positions(self, inputs, cache):
        """cos and sin (B, 1, T, N/2), and which tokens count, (B, T) bool; None: all do."""
        B, T = inputs.shape
        start = mask = None
        if cache is not None:
            start, mask = cache[1], cache.make_mask(T)
        place = mx.broadcast_to(mx.arange(1, T + 1), (B, T)) if mask is None else mask.cumsum(1)
        if start is not None:
            place = place + start[:, None]
        if cache is not None:
            cache[1] = place[:, -1]  # tokens read, in each row
        turns = (place - 1).astype(mx.float32)[:, None, :, None] * self._frequency
        angle = turns % 1 * (2 * math.pi)
        return mx.cos(angle), mx.sin(angle), mask

    def make_cache(self):
        """ρ for each application of a layer; besides, for the first, how many tokens were read."""
        return [ArraysCache(1 if i else 2) for i in range(self.args.n_layer)]

    def sanitize(self, weights):
        """Official names: encoder, encoder_v (H, C, N), decoder (H·N, C), lm_head (C, V)."""
        if "encoder" not in weights:  # saved by mlx_lm
            return weights
        C, H, N = self.args.n_embd, self.args.n_head, self.args.neurons
        named = {"embed.weight": weights["embed.weight"], "lm_head.weight": weights["lm_head"].T}
        for i in range(len(self.layers)):
            encoder, encoder_v, decoder = (
                weights[name].reshape(len(self.layers), *shape)[i] for name, shape in (
                    ("encoder", (H, C, N)), ("encoder_v", (H, C, N)), ("decoder", (H * N, C))))
            named |= {f"layers.{i}.encoder.weight": encoder.swapaxes(1, 2).reshape(H * N, C),
                      f"layers.{i}.encoder_v.weight": encoder_v.swapaxes(1, 2),
                      f"layers.{i}.decoder.weight": decoder.T}
        return named
