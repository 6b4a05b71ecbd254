"""Mistral for mlx_lm with its sliding window (Jiang et al., arXiv 2310.06825).

mlx_lm runs Mistral as Llama, where every token sees all before it. Here token t sees s with
t - sliding_window < s <= t, and the cache keeps no more than that.
"""

from mlx_lm.models import llama
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import RotatingKVCache
from mlx_lm.models.llama import ModelArgs

__all__ = ["Model", "ModelArgs"]


class MistralModel(llama.LlamaModel):
    """tokens (B, T) → hidden states (B, T, C)."""

    def __call__(self, inputs, cache=None, input_embeddings=None):
        h = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        cache = cache or [None] * len(self.layers)
        mask = create_attention_mask(h, cache[0], window_size=self.sliding_window)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            h = layer(h, mask, cache=layer_cache)
        return self.norm(h)


class Model(llama.Model):
    """tokens (B, T) → logits (B, T, V)."""

    def __init__(self, args):
        super().__init__(args)
        self.model = MistralModel(args)

    def make_cache(self):
        return [RotatingKVCache(max_size=self.args.sliding_window) for _ in self.layers]
