"""mlx_lm's RWKV-7 in bfloat16 rounds the decay and keeps the state in bfloat16; and where a key is
zero its gradient is none. python docs/upstream/rwkv7.py
"""

from importlib.metadata import version

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import rwkv7

T, C, D = 1024, 64, 32
EDGES = (64, 256, 1024)
plain_decay, plain_wkv = mx.exp, rwkv7.Rwkv7TimeMixing._wkv7


def model():
    """Random weights, but the decay's bias as it is initialised: −5.5 for the slowest channels."""
    args = rwkv7.ModelArgs(
        model_type="rwkv7", vocab_size=64, hidden_size=C, intermediate_size=2 * C, norm_eps=1e-5,
        head_dim=D, num_hidden_layers=2, a_low_rank_dim=8, v_low_rank_dim=8, gate_low_rank_dim=8,
        decay_low_rank_dim=8)
    made = rwkv7.Model(args)
    rng = np.random.default_rng(0)
    weights = []
    for name, value in tree_flatten(made.parameters()):
        w = rng.standard_normal(value.shape) * (0.5 if value.ndim < 2 else C**-0.5)
        if name.endswith("w_lora.lora.2.bias"):
            w = -5.5 + 6 * np.linspace(0, 1, C) ** 2
        weights.append((name, mx.array(w.astype(np.float32)).astype(mx.bfloat16)))
    made.update(tree_unflatten(weights))
    return made


def in_float32(self, r, w, k, v, a, b, state):
    y, state = plain_wkv(self, *(x.astype(mx.float32) for x in (r, w, k, v, a, b)), state)
    return y.astype(mx.bfloat16), state


class Unrounded:
    """A decay that stays in float32 when it is told to become bfloat16."""

    def __init__(self, value):
        self.value = value

    def astype(self, dtype):
        return self.value


def logits(made, tokens):
    return np.array(made(tokens).astype(mx.float32))


def distances(found, exact):
    """Of the 64 tokens before each of EDGES."""
    parts = [(found[:, end - 64 : end], exact[:, end - 64 : end]) for end in EDGES]
    return "".join(f"{np.linalg.norm(a - b) / np.linalg.norm(b):10.1e}" for a, b in parts)


def main():
    print(f"mlx_lm {version('mlx_lm')}, bfloat16 against float32: relative distance of")
    print("the logits of 64 tokens, before position", *(f"{end:9}" for end in EDGES))
    tokens = mx.array(np.random.default_rng(1).integers(0, 64, (1, T)))
    half = model()
    exact_model = model()
    exact_model.set_dtype(mx.float32)
    exact = logits(exact_model, tokens)
    print("as it is                              ", distances(logits(half, tokens), exact))
    rwkv7.Rwkv7TimeMixing._wkv7 = in_float32
    print("state in float32                      ", distances(logits(half, tokens), exact))
    rwkv7.mx = type("mx", (), {**vars(mx), "exp": staticmethod(
        lambda x: Unrounded(plain_decay(x)))})
    print("state and decay in float32            ", distances(logits(half, tokens), exact))
    rwkv7.mx, rwkv7.Rwkv7TimeMixing._wkv7 = mx, plain_wkv
    w = mx.exp(-0.606531 * mx.sigmoid(mx.array([-5.5, -6.0])))
    print("decays of", *np.array(w), "become", *np.array(w.astype(mx.bfloat16).astype(mx.float32)))
    for layer in exact_model.layers:
        layer.attn.k_k = layer.attn.k_k * 0
    _, grads = nn.value_and_grad(exact_model, lambda m: m(tokens[:, :9]).sum())(exact_model)
    bad = [name for name, g in tree_flatten(grads) if not mx.isfinite(g).all().item()]
    print(f"keys of zero: {len(bad)} of {len(tree_flatten(grads))} gradients are not finite")


if __name__ == "__main__":
    main()
