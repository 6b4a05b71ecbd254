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
        pieces = []
        for start in range(0, tokens.shape[1], PIECE):
            piece = mx.array(tokens[:, start : start + PIECE])
            pieces.append(np.array(self.model(piece, self.cache)))
        return np.concatenate(pieces, axis=1)

    def step(self, tokens):
        return self.prefill(np.asarray(tokens)[:, None])[:, 0]

    def trace(self, tokens):
        return trace_decoding(self.model, mx.array(tokens), self.cache)

    def fork(self, rows):
        index = mx.array(list(rows))
        return Decoder(self.model, [cache.take(index) for cache in self.cache])

    def state_bytes(self):
        return sum(cache.nbytes for cache in self.cache)
