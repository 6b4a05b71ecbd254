"""Our caches in mlx_lm's generation loop, and mlx_lm's caches in our models of attention."""

import mlx.core as mx

from specs.errors import UserError


class PromptCache:
    """What `mlx_lm.generate` asks of a cache besides what decoding does."""

    @property
    def state(self):
        """Arrays to wait for."""
        return [arrays_of(part) for part in vars(self).values()]


def arrays_of(part):
    """What of a cache's attribute is arrays, in lists or dicts; None for nothing."""
    if isinstance(part, list):
        return [each.state for each in part]
    return part if isinstance(part, dict | mx.array) else getattr(part, "buffer", None)


class PromptKeyValueCache(PromptCache):
    """The same, of keys and values."""

    def to_quantized(self, group_size, bits):
        """mlx_lm's quantized cache of the tokens held (`kv_bits`). Raises `UserError` where a
        window lets go of some: mlx_lm has no such cache."""
        from mlx_lm.models.cache import KVCache  # takes seconds, unless mlx_lm is what asks

        if self.window is not None:
            raise UserError(f"kv_bits = {bits}: keys and values of a model with a window cannot be "
                            "quantized, leave it out")
        cache = KVCache()
        if self.offset:
            cache.update_and_fetch(self.k.held(), self.v.held())
        return cache.to_quantized(group_size, bits)


class Adapted:
    """One of mlx_lm's caches of keys and values, used as one of ours."""

    def __init__(self, cache, window):
        self.cache, self.window, self.offset = cache, window, cache.offset

    def make_mask(self, tokens):
        T, behind = tokens.shape[1], self.offset > 0  # its "causal" also aligns T behind others
        return self.cache.make_mask(T, return_array=behind, window_size=self.window)

    def update_and_fetch(self, k, v):
        held = self.cache.update_and_fetch(k, v)
        if not hasattr(self.cache, "bits"):
            return held
        return [mx.dequantize(*rows, self.cache.group_size, self.cache.bits) for rows in held]


def adapted(caches, spec):
    """The caches of all layers as ours. Raises `UserError` where mlx_lm's would show others."""
    if caches is None or all(isinstance(cache, PromptCache) for cache in caches):
        return caches
    if not hasattr(spec, "window"):
        raise UserError(f"{spec.arch} keeps no keys and values: leave prompt_cache out")
    if spec.sinks:
        raise UserError(f"sinks = {spec.sinks}: mlx_lm's caches do not keep the first tokens in "
                        "sight, leave prompt_cache out")
    return [Adapted(cache, spec.window) for cache in caches]
