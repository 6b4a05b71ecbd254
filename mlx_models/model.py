"""The frame that most architectures share (specs/layered.py); the twin is torch_models/model.py.

B batch, T time, C width, V vocabulary. The residual stream and logits are in at least float32.
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_models.for_mlx_lm.caches import adapted
from mlx_models.layers import (
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    begin,
    dropout,
    fold,
    recompute,
    upcast,
)

NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


class LanguageModel(nn.Module):
    """tokens (B, T) → logits (B, T, V). `key` (B,) int32 turns dropout on.

    An architecture says what a layer is (`block`), what all of them read besides x (`context`),
    and what one of them keeps in decoding (`new_cache`).
    """

    def __init__(self, spec, dtype=mx.float32):
        super().__init__()
        C, V = spec.n_embd, spec.vocab_size
        self.spec, self.dtype, self.recompute = spec, dtype, False
        self.embed = Embedding(V, C)
        self.layers = [self.block(i) for i in range(spec.n_layer)]
        self.norm = NORMS[spec.norm](C, spec.norm_eps)
        if not spec.tie_embeddings:
            self.lm_head = Linear(C, V, bias=False)

    def __call__(self, tokens, cache=None, key=None):
        return self.head(self.hidden(tokens, cache, key))

    def hidden(self, tokens, cache=None, key=None):
        """What the head reads, (B, T, C)."""
        cache = adapted(cache, self.spec)
        x, context = self.enter(tokens, cache, key)
        for i, layer in enumerate(self.layers):
            args = (x, *context, fold(key, i))
            if cache is not None:
                x = begin(layer(*args, cache[i]))
            else:
                x = recompute(layer, *args) if self.recompute else layer(*args)
        return self.leave(x)

    def enter(self, tokens, cache, key):
        """(what the first layer reads, what all of them read besides)."""
        start = cache[0].offset if cache else 0
        self.spec.check_length(start + tokens.shape[1])
        x = self.embedded(tokens, start)
        context = self.context(tokens, start, cache[0] if cache else self.new_cache())
        return dropout(x, self.spec.dropout, key), context

    def leave(self, x):
        return self.norm(x).astype(self.dtype)

    def head(self, x):
        """Logits (B, T, V) of x (B, T, C)."""
        return upcast(self.embed.as_linear(x) if self.spec.tie_embeddings else self.lm_head(x))

    def embedded(self, tokens, start):
        """x (B, T, C) of the tokens at positions from `start` on."""
        return self.embed(tokens)

    def context(self, tokens, start, cache):
        """A tuple; `cache` is that of the first layer."""
        return ()

    def make_cache(self, batch_size=1, length=None, kind="auto"):
        """One cache a layer, of the only kind there is."""
        if kind != "auto":
            self.spec.check_decode_kind(kind)
        return [self.new_cache() for _ in self.layers]
