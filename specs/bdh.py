"""BDH, Baby Dragon Hatchling (Kosowski et al., arXiv 2509.26507; official code pathwaycom/bdh).

Per head N = mlp_internal_dim_multiplier·C/H; LN is LayerNorm without weight or bias, eps 1e-5.

    x = LN(embed)                                           (B, T, C)
    L times, with the same weights unless share_layers is false:
        s = relu(x·encoder)                                 (H, B, T, N)
        r = RoPE(s)             interleaved, phase frac(t·f_n)·2π, f_n = 65536^(−2⌊n/2⌋/N)/2π
        A = r rᵀ, strictly lower triangular: a token never sees itself
        y = LN(score_scale·A x)                             (H, B, T, C)
        g = dropout(s ⊙ relu(y·encoder_v))                  (H, B, T, N)
        x = LN(x + LN(Σ_h g_h·decoder_h))                   (B, T, C)
    logits = x·lm_head                                      (B, T, V)

No softmax, so attention has an exact recurrence with the state ρ (N × C per head and layer):
y_t = r_t ρ, then ρ += r_tᵀ x_t. Ours besides the official fields: `share_layers`, `score_scale`
(1, N^−½ or 1/N on the scores) and `window` (token t sees t − window < s < t).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from specs import base
from specs.base import Param
from specs.init import normal

ROPE_THETA = 2.0**16
CHUNK = 256  # tokens; a longer chunk costs more scores, a shorter one more reads of the state


@dataclass(frozen=True, kw_only=True)
class Spec(base.Spec):
    """The official configuration is the default (25,296,896 parameters)."""

    n_layer: int = 6
    n_embd: int = 256
    n_head: int = 4
    mlp_internal_dim_multiplier: int = 128
    vocab_size: int = 256
    dropout: float = 0.1
    norm_eps: float = 1e-5
    share_layers: bool = True
    score_scale: Literal["none", "sqrt", "linear"] = "none"
    window: int | None = None

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"n_layer": 3, "n_embd": 32, "n_head": 2, "mlp_internal_dim_multiplier": 4,
                 "vocab_size": 64, "block_size": 640, "dropout": 0.0},
        "demo": {"n_layer": 4, "n_embd": 64, "n_head": 2, "mlp_internal_dim_multiplier": 32,
                 "block_size": 128, "dropout": 0.0},
        "10m": {"n_embd": 160},
        "25m": {},
        "100m": {"n_embd": 512},
    }
    foreign_keys: ClassVar[tuple[str, ...]] = ("attn.freqs",)

    def validate(self) -> None:
        self.require("n_head", self.n_head >= 1, "at least 1")
        inner = self.mlp_internal_dim_multiplier * self.n_embd
        self.require("mlp_internal_dim_multiplier", inner >= 1 and inner % (2 * self.n_head) == 0,
                     f"such that it times n_embd is a multiple of 2·n_head = {2 * self.n_head}")
        self.require("norm_eps", self.norm_eps > 0, "positive")
        self.require("window", self.window is None or self.window >= 2, "null or at least 2")

    @property
    def d_state(self) -> int:
        """N: neurons per head."""
        return self.mlp_internal_dim_multiplier * self.n_embd // self.n_head

    @property
    def head_name(self) -> str:
        return "lm_head"

    @property
    def scale(self) -> float:
        """What the scores are multiplied by."""
        return self.d_state ** {"none": 0.0, "sqrt": -0.5, "linear": -1.0}[self.score_scale]

    @property
    def unwritten(self) -> int:
        """Tokens that decoding keeps as they are before it adds them to ρ.

        K tokens cost a step half of K rows to read and a K-th of twice ρ to write: least at 2√C.
        """
        return round(2 * self.n_embd**0.5)

    @property
    def decode_kinds(self) -> tuple[str, ...]:
        """ρ cannot forget: with a window there is the cache alone."""
        return ("cache", "recurrent") if self.window is None else ("cache",)

    def params(self) -> tuple[Param, ...]:
        C, H, N, V = self.n_embd, self.n_head, self.d_state, self.vocab_size
        layers = () if self.share_layers else (self.n_layer,)
        init = normal(0.02)
        return (
            Param("embed.weight", (V, C), init, "embed"),
            Param("encoder", (*layers, H, C, N), init, "hidden"),
            Param("encoder_v", (*layers, H, C, N), init, "hidden"),
            Param("decoder", (*layers, H * N, C), init, "hidden", matrix=(N, C)),
            Param("lm_head", (C, V), init, "head"),
        )

    def flops_per_token(self, T: int) -> float:
        """Three products with the weights; the unmasked half of r rᵀ and of A x, or that of a
        chunk and the state, read and written, where this is less."""
        C, inner = self.n_embd, self.n_head * self.d_state
        pair = 2 * (inner + self.n_head * C)
        most = min(T, self.window or T) - 1  # earlier tokens that one sees; itself for a half
        attention = ((most + 1) * most / 2 + (T - most - 1) * most + T / 2) / T * pair
        if self.window is None:
            attention = min(attention, CHUNK / 2 * pair + 4 * inner * C)
        return self.n_layer * (6 * C * inner + attention) + 2 * C * self.vocab_size

    def decode_state_bytes(self, T: int, kind: str = "auto") -> int:
        """The smaller of the two states, or the one asked for: T rows of (r, x), or ρ and the
        most rows that are kept before they are added to it."""
        C, inner = self.n_embd, self.n_head * self.d_state
        seen = T if self.window is None else min(T, self.window - 1)
        cost = {"cache": 4 * self.n_layer * seen * (inner + C)}
        if "recurrent" in self.decode_kinds:
            cost["recurrent"] = 4 * self.n_layer * (inner * C + self.unwritten * (inner + C))
        return min(cost.values()) if kind == "auto" else cost[kind]

    def decode_traffic(self, T: int, kind: str = "auto") -> int:
        """All weights, those of the layers once a layer; the cache is read, or ρ and half of the
        rows beside it, and ρ read and written each time that they are full."""
        kind = self.decode_kind(T) if kind == "auto" else kind
        C, inner, K = self.n_embd, self.n_head * self.d_state, self.unwritten
        state = self.decode_state_bytes(T, kind)
        if kind == "recurrent":
            state = 4 * self.n_layer * round(inner * C * (1 + 2 / K) + (inner + C) * K / 2)
        return 4 * (self.n_layer * 3 * C * inner + C * self.vocab_size) + state

    def decode_kind(self, T: int) -> str:
        """The cheaper state for T tokens in all."""
        return "cache" if self.decode_state_bytes(T) == self.decode_state_bytes(T, "cache") \
            else "recurrent"

    def rotary(self, start: int, T: int) -> np.ndarray:
        """Angles in radians at positions start … start+T−1, (T, N/2) in float32.

        Every step is rounded to float32 as in the official code, so that both panels, and their
        float64 referee, rotate by the same angles at any position. The power is taken in float64
        before: those of float32 differ from one processor to the other.
        """
        exponent = np.arange(0, self.d_state, 2, dtype=np.float32) / np.float32(self.d_state)
        power = (ROPE_THETA ** exponent.astype(np.float64)).astype(np.float32)
        frequency = 1 / power / np.float32(2 * np.pi)
        turns = np.arange(start, start + T, dtype=np.float32)[:, None] * frequency
        return turns % 1 * np.float32(2 * np.pi)
