"""rwkv7, "Goose": a state that forgets, erases and writes (Peng et al., arXiv 2503.14456).

D = head_dim, H = C/D heads; projections x Wᵀ, low-rank factors x w1 w2; LN is LayerNorm; ⊙ entry
by entry; x⁻ is h one token earlier, zero before the first.

    x = LN(embed[tokens])                                   (B, T, C)
    L times:
        h = LN(x);  z_* = h + (h⁻ − h) ⊙ x_*                for * in r, w, k, v, a, g
        r, k, v = z_r Wr, z_k Wk, z_v Wv;  g = σ(z_g g1) g2
        w = exp(−e^(−½) σ(w0 + tanh(z_w w1) w2))            the decay: 0.545 < w < 1
        a = σ(a0 + z_a a1 a2)                               how much is erased
        v = v + (v_first − v) ⊙ σ(v0 + z_v v1 v2)           but in layer 0, whose v is v_first
        κ = (k ⊙ k_k)/|k ⊙ k_k| per head;  k = k ⊙ (1 + (a − 1) ⊙ k_a)
        S = S diag(w) − (S κ)(κ ⊙ a)ᵀ + v kᵀ                (B, H, D, D) rows value, columns key
        y = LN_head(S r) + (Σ_head r ⊙ k ⊙ r_k) v           eps 64e-5
        x = x + dropout((y ⊙ g) Wo)
        h = LN(x);  z = h + (h⁻ − h) ⊙ x_k;  x = x + dropout(relu(z Wup)² Wdown)
    logits = LN(x) Whead

Decoding keeps S and the last h of both mixings, whatever the length. Initial weights are
the published ones. Adam moves w0 at twice the rate; the low-rank factors do not decay. Left out:
the recipe's betas, 0.9 and 0.99, which are a run's setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from specs.base import Param
from specs.init import Init, constant, orthogonal, uniform, values
from specs.layered import Recurrent


@dataclass(frozen=True, kw_only=True)
class Spec(Recurrent):
    """The default is the published form. `None` means: decided from the width."""

    head_dim: int = 64
    d_ff: int | None = None
    decay_low_rank_dim: int | None = None
    a_low_rank_dim: int | None = None
    v_low_rank_dim: int | None = None
    gate_low_rank_dim: int | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    norm = "layernorm"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"n_layer": 2, "n_embd": 32, "head_dim": 8, "d_ff": 48, "decay_low_rank_dim": 5,
                 "a_low_rank_dim": 4, "v_low_rank_dim": 3, "gate_low_rank_dim": 6,
                 "vocab_size": 64, "block_size": 640},
        "demo": {"n_layer": 4, "n_embd": 96, "head_dim": 32, "block_size": 128},
        "10m": {"n_embd": 384},
        "0.1b": {"n_layer": 12, "n_embd": 768, "vocab_size": 65536},
    }

    def validate(self) -> None:
        self.require("head_dim", self.head_dim >= 2, "at least 2")
        self.require("n_embd", self.n_embd % self.head_dim == 0,
                     f"a multiple of head_dim = {self.head_dim}")
        self.require("norm_eps", self.norm_eps > 0, "positive")
        for name in ("d_ff", "decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim",
                     "gate_low_rank_dim"):
            value = getattr(self, name)
            self.require(name, value is None or value >= 1, "null or at least 1")

    @property
    def heads(self) -> int:
        """H."""
        return self.n_embd // self.head_dim

    @property
    def mlp_width(self) -> int:
        """F: by default 4·C."""
        return self.d_ff or 4 * self.n_embd

    @property
    def ranks(self) -> dict[str, int]:
        """Of the low-rank factors of w, a, v and g."""
        def near(share: float) -> int:
            return max(32, 32 * round(share * self.n_embd**0.5 / 32))

        return {"w": self.decay_low_rank_dim or near(2.5), "a": self.a_low_rank_dim or near(2.5),
                "v": self.v_low_rank_dim or near(1.7), "g": self.gate_low_rank_dim or near(5)}

    def embed_init(self) -> Init:
        return uniform(1e-4)  # what follows is a norm

    def head_init(self) -> Init:
        return orthogonal(0.5 * max(1, self.vocab_size / self.n_embd) ** 0.5)

    def layer(self, i: int, path: str) -> Iterator[Param]:
        if i == 0:
            yield from self.residual_norm(f"{path}.pre_norm")
        yield from self.residual_norm(f"{path}.mixer_norm")
        yield from self.time_mix(i, f"{path}.mixer")
        yield from self.residual_norm(f"{path}.mlp_norm")
        C, F = self.n_embd, self.mlp_width
        late = (1 - i / self.n_layer) ** 4
        yield vector(f"{path}.mlp.x_k", 1 - (np.arange(C) / C) ** late)
        yield Param(f"{path}.mlp.up_proj.weight", (F, C), orthogonal(), "hidden")
        yield Param(f"{path}.mlp.down_proj.weight", (C, F), constant(0), "hidden")

    def time_mix(self, i: int, path: str) -> Iterator[Param]:
        """The parameters of the mixer of layer i."""
        C, D, L = self.n_embd, self.head_dim, self.n_layer
        channel, late = np.arange(C), 1 - i / L
        for name, power in (("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)):
            yield vector(f"{path}.x_{name}", 1 - (channel / C) ** (power * late))
        share = channel / (C - 1)
        place = 2 * (channel % D) / (D - 1) - 1
        zig, lin = place * abs(place), share - 0.5
        deep = i / max(1, L - 1)
        start = {"w": -5.5 + 6 * share ** (1 + deep**0.3) + 2.5 * zig,
                 "a": -0.19 + 0.3 * zig + 0.4 * lin, "v": 0.73 - 0.4 * lin}
        for name, rank in self.ranks.items():
            if name == "v" and i == 0:
                continue
            if name in start:
                yield vector(f"{path}.{name}0", start[name], 2 if name == "w" else 1)
            yield Param(f"{path}.{name}1", (C, rank), constant(0), "vector")
            yield Param(f"{path}.{name}2", (rank, C), orthogonal(0.1), "vector")
        yield vector(f"{path}.k_k", 0.71 - 0.1 * lin)
        yield Param(f"{path}.k_a", (C,), constant(1.02), "vector")
        yield Param(f"{path}.r_k", (self.heads, D), constant(-0.04), "vector")
        for name, init in (("r", orthogonal()), ("k", orthogonal(0.1)), ("v", orthogonal()),
                           ("o", constant(0))):
            yield Param(f"{path}.{name}_proj.weight", (C, C), init, "hidden")
        yield Param(f"{path}.ln_x.weight", (C,), constant(((i + 1) / L) ** 0.7), "vector")
        yield Param(f"{path}.ln_x.bias", (C,), constant(0), "vector")

    def flops_per_token(self, T: int) -> float:
        """The products with all matrices, and four with a state: S κ, (S κ)(κ ⊙ a)ᵀ, v kᵀ, S r.
        Chunks of tokens do more, but in products of matrices."""
        matrices = sum(param.size for param in self.params()
                       if param.name.startswith("layers.") and len(param.shape) == 2
                       and not param.name.endswith(".r_k"))
        states = self.n_layer * 8 * self.n_embd * self.head_dim
        return 2 * matrices + states + 2 * self.n_embd * self.vocab_size

    def decode_state_bytes(self, T: int, kind: str = "auto") -> int:
        """S, and the last h of both mixings, in float32."""
        return 4 * self.n_layer * self.n_embd * (self.head_dim + 2)


def vector(name: str, start: np.ndarray, lr_scale: float = 1) -> Param:
    """A row of the table for one number a channel, which begins as `start`."""
    return Param(name, start.shape, values(start), "vector", lr_scale=lr_scale)
