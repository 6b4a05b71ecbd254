"""Cached decoding behind the protocol of specs/backend.py."""

import numpy as np
import torch

from torch_models.trace import trace_decoding

PIECE = 512  # tokens that a prefill reads at once: bounds its activations


class Decoder:
    """See specs.backend.Decoder."""

    def __init__(self, model, cache, device):
        self.model, self.cache, self.device = model, cache, device

    @property
    def offset(self):
        return self.cache[0].offset

    @torch.inference_mode()
    def prefill(self, tokens):
        return np.concatenate([self.model.head(x).numpy(force=True) for x in self.hidden(tokens)],
                              axis=1)

    @torch.inference_mode()
    def read(self, tokens):
        *_, x = self.hidden(tokens)
        return self.model.head(x[:, -1:]).numpy(force=True)[:, 0]

    def step(self, tokens):
        return self.read(np.asarray(tokens)[:, None])

    def hidden(self, tokens):
        """What the head reads of each piece, (B, up to PIECE, C)."""
        for start in range(0, tokens.shape[1], PIECE):
            piece = torch.tensor(tokens[:, start : start + PIECE], device=self.device)
            yield self.model.hidden(piece, self.cache)

    def trace(self, tokens):
        return trace_decoding(self.model, torch.tensor(tokens, device=self.device), self.cache)

    @torch.inference_mode()
    def fork(self, rows):
        index = torch.tensor(list(rows), device=self.device)
        return Decoder(self.model, [cache.take(index) for cache in self.cache], self.device)

    def state(self):
        held = {f"{i}.{name}": array for i, cache in enumerate(self.cache)
                for name, array in cache.arrays().items()}
        halves = torch.bfloat16  # which numpy lacks
        arrays = {name: (array.float() if array.dtype == halves else array).numpy(force=True).copy()
                  for name, array in held.items()}
        return {"offset": np.array(self.offset), **arrays}

    @torch.inference_mode()
    def load_state(self, state):
        offset = int(state["offset"])
        least = torch.promote_types(self.model.dtype, torch.float32)
        for i, cache in enumerate(self.cache):
            arrays = {name.removeprefix(f"{i}."): torch.tensor(array, dtype=least,
                                                               device=self.device)
                      for name, array in state.items() if name.startswith(f"{i}.")}
            cache.load(arrays, offset, self.model.dtype)

    def state_bytes(self):
        return sum(cache.nbytes for cache in self.cache)
