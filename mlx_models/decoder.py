"""Cached decoding behind the protocol of specs/backend.py."""

import mlx.core as mx
import numpy as np

from mlx_models.trace import trace_decoding

PIECE = 512  # tokens that a prefill reads at once: bounds its activations


class Decoder:
    """See specs.backend.Decoder."""

    def __init__(self, model, cache):
        self.model, self.cache = model, cache

    @property
    def offset(self):
        return self.cache[0].offset

    def prefill(self, tokens):
        return np.concatenate([np.array(self.model.head(x)) for x in self.hidden(tokens)], axis=1)

    def read(self, tokens):
        *_, x = self.hidden(tokens)
        return np.array(self.model.head(x[:, -1:]))[:, 0]

    def step(self, tokens):
        return self.read(np.asarray(tokens)[:, None])

    def hidden(self, tokens):
        """What the head reads of each piece, (B, up to PIECE, C)."""
        for start in range(0, tokens.shape[1], PIECE):
            yield self.model.hidden(mx.array(tokens[:, start : start + PIECE]), self.cache)
            if tokens.shape[1] > 1:  # else the state of a long text is left to the next token
                mx.eval([list(cache.arrays().values()) for cache in self.cache])

    def trace(self, tokens):
        return trace_decoding(self.model, mx.array(tokens), self.cache)

    def fork(self, rows):
        index = mx.array(list(rows))
        return Decoder(self.model, [cache.take(index) for cache in self.cache])

    def state(self):
        held = {f"{i}.{name}": array for i, cache in enumerate(self.cache)
                for name, array in cache.arrays().items()}
        halves = mx.bfloat16  # which numpy lacks
        arrays = {name: np.array(array.astype(mx.float32) if array.dtype == halves else array)
                  for name, array in held.items()}
        return {"offset": np.array(self.offset), **arrays}

    def load_state(self, state):
        offset = int(state["offset"])
        for i, cache in enumerate(self.cache):
            arrays = {name.removeprefix(f"{i}."): mx.array(array.astype(np.float32))
                      for name, array in state.items() if name.startswith(f"{i}.")}
            cache.load(arrays, offset, self.model.dtype)

    def state_bytes(self):
        return sum(cache.nbytes for cache in self.cache)
