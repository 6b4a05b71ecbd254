"""gpt, the softmax transformer: by its options GPT-2, Llama, Qwen3 or Mistral.

Radford et al., 2019; Touvron et al., arXiv 2302.13971; Qwen team, arXiv 2505.09388; Jiang et al.,
arXiv 2310.06825. D = head_dim; query head j reads key head ⌊j·Hkv/H⌋; all projections x Wᵀ (+ b).

    x = embed[tokens] (+ pos_embed[t])                      (B, T, C)
    L times:
        h = norm(x);  q, k, v = h Wq, h Wk, h Wv            (B, H, T, D), (B, Hkv, T, D) twice
        q, k = RMS(q), RMS(k)                               with qk_norm, per head
        q, k = RoPE(q), RoPE(k)     halves: (x1 cos − x2 sin, x2 cos + x1 sin), t·rope_theta^(−2i/D)
        x = x + dropout(softmax(q kᵀ/√D, over visible s) v Wo)
        h = norm(x);  x = x + dropout(act(h Wup) Wdown)     swiglu: (silu(h Wgate) ⊙ h Wup) Wdown
    logits = norm(x) Whead, then c·tanh(logits/c) with logit_softcap = c

Token t sees s ≤ t; with `window` w only t − w < s, and the first `sinks` tokens besides
(StreamingLLM, arXiv 2309.17453). Dropout acts on the embeddings and on what joins the residual
stream, not on attention weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from specs.base import Param, linear, norm, rotary_angles, rotary_frequencies
from specs.init import normal
from specs.layered import Layered

GPT2 = {"norm": "layernorm", "pos": "learned", "mlp": "gelu_tanh", "bias": True, "dropout": 0.1,
        "vocab_size": 50257, "block_size": 1024}
NANOGPT = {"norm": "layernorm", "pos": "learned", "mlp": "gelu"}


class GroupedHeads(Layered):
    """What softmax attention with grouped heads needs of a spec, here and in architectures that
    share it; each declares the fields that it has."""

    n_head: int
    n_kv_head: int | None
    head_dim: int | None
    qk_norm: bool
    rope_theta: float

    @property
    def bias(self) -> bool:
        return False

    def require_heads(self, rotary: bool) -> None:
        """Raise `UserError` for heads that do not go together."""
        self.require("n_head", self.n_head >= 1, "at least 1")
        self.require("n_kv_head", self.n_kv_head is None or (
            self.n_kv_head >= 1 and self.n_head % self.n_kv_head == 0),
            f"null or a divisor of n_head = {self.n_head}")
        if self.head_dim is None:
            self.require("n_embd", self.n_embd % self.n_head == 0,
                         f"a multiple of n_head = {self.n_head} unless head_dim is given")
        self.require("head_dim", self.head_dim is None or self.head_dim >= 1, "null or at least 1")
        if rotary and self.head_size % 2:
            name = "n_embd" if self.head_dim is None else "head_dim"
            self.require(name, False, "such that heads have an even size for pos = 'rope'")
        self.require("rope_theta", self.rope_theta > 0, "positive")

    @property
    def kv_heads(self) -> int:
        """Hkv: by default one for each query head."""
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        """D: by default C/H."""
        return self.head_dim or self.n_embd // self.n_head

    def attention(self, path: str) -> Iterator[Param]:
        """The parameters of the module `path`."""
        C, D, H, Hkv = self.n_embd, self.head_size, self.n_head, self.kv_heads
        yield from self.linear(f"{path}.q_proj", H * D, C)
        yield from self.linear(f"{path}.k_proj", Hkv * D, C)
        yield from self.linear(f"{path}.v_proj", Hkv * D, C)
        yield from self.linear(f"{path}.o_proj", C, H * D, self.out_std)
        for name in ("q_norm", "k_norm") if self.qk_norm else ():
            yield from norm(f"{path}.{name}", D)

    def linear(self, path: str, out: int, into: int, std: float = 0.02) -> Iterator[Param]:
        return linear(path, out, into, std, self.bias)

    def rotary(self, start: int, T: int) -> np.ndarray:
        """Angles at positions start … start+T−1, (T, D/2) in float64."""
        return rotary_angles(self.frequencies(), start, T)

    def frequencies(self) -> np.ndarray:
        """How fast each pair of entries turns: radians a token, (D/2,)."""
        return rotary_frequencies(self.head_size, self.rope_theta)


@dataclass(frozen=True, kw_only=True)
class Spec(GroupedHeads):
    """The default is Llama's form with tied embeddings. `None` means: decided from the rest."""

    n_head: int = 4
    n_kv_head: int | None = None
    head_dim: int | None = None
    d_ff: int | None = None
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_eps: float = 1e-5
    pos: Literal["learned", "rope", "none"] = "rope"
    rope_theta: float = 10000.0
    rope_factor: float | None = None
    mlp: Literal["gelu", "gelu_tanh", "swiglu", "relu2"] = "swiglu"
    qk_norm: bool = False
    bias: bool = False
    tie_embeddings: bool = True
    window: int | None = None
    sinks: int = 0
    logit_softcap: float | None = None

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"n_layer": 2, "n_embd": 32, "n_kv_head": 2, "d_ff": 48, "vocab_size": 64,
                 "block_size": 640},
        "demo": {"n_layer": 4, "n_embd": 96, "block_size": 128},
        "gpt2": {**GPT2, "n_layer": 12, "n_embd": 768, "n_head": 12},
        "medium": {**GPT2, "n_layer": 24, "n_embd": 1024, "n_head": 16},
        "llama": {"n_embd": 384, "n_head": 6, "tie_embeddings": False},
        "qwen3": {"n_embd": 384, "n_head": 6, "n_kv_head": 2, "head_dim": 128, "qk_norm": True,
                  "norm_eps": 1e-6, "rope_theta": 1e6},
        "mistral": {"n_embd": 384, "n_head": 6, "n_kv_head": 2, "window": 128,
                    "tie_embeddings": False},
        "nanogpt-cpu": {**NANOGPT, "n_layer": 4, "n_embd": 128, "block_size": 64},
        "nanogpt-gpu": {**NANOGPT, "n_embd": 384, "n_head": 6, "block_size": 256, "dropout": 0.2},
        "shakespeare": {"n_layer": 2, "n_embd": 128, "mlp": "relu2", "qk_norm": True,
                        "block_size": 64},
    }

    def validate(self) -> None:
        self.require_heads(rotary=self.pos == "rope")
        self.require("d_ff", self.d_ff is None or self.d_ff >= 1, "null or at least 1")
        self.require("norm_eps", self.norm_eps > 0, "positive")
        self.require("rope_factor", self.rope_factor is None or self.rope_factor >= 1,
                     "null or at least 1")
        self.require("window", self.window is None or self.window >= 2, "null or at least 2")
        self.require("sinks", self.sinks == 0 or (self.sinks > 0 and self.window is not None),
                     "0, or positive beside a window")
        self.require("logit_softcap", self.logit_softcap is None or self.logit_softcap > 0,
                     "null or positive")

    @property
    def mlp_width(self) -> int:
        """F: by default 4·C, or 8·C/3 where three matrices take the place of two."""
        return self.d_ff or self.n_embd * (8 if self.mlp == "swiglu" else 12) // 3

    @property
    def max_length(self) -> int | None:
        return self.block_size if self.pos == "learned" else None

    def frequencies(self) -> np.ndarray:
        """With `rope_factor` Llama 3.1's (Meta, rope_type "llama3"): slower by that factor where
        8,192 tokens, its first context, are less than a turn, as they are where these are four
        turns or more, and a mixture between."""
        plain = super().frequencies()
        if self.rope_factor is None:
            return plain
        turns = 8192 * plain / (2 * np.pi)
        keep = np.clip((turns - 1) / (4 - 1), 0, 1)
        return plain * (keep + (1 - keep) / self.rope_factor)

    def params(self) -> tuple[Param, ...]:
        table = super().params()
        if self.pos == "learned":
            shape = self.block_size, self.n_embd
            table = table[0], Param("pos_embed.weight", shape, normal(0.02), "embed"), *table[1:]
        return table

    def layer(self, i: int, path: str) -> Iterator[Param]:
        C, F = self.n_embd, self.mlp_width
        yield from self.residual_norm(f"{path}.mixer_norm")
        yield from self.attention(f"{path}.mixer")
        yield from self.residual_norm(f"{path}.mlp_norm")
        if self.mlp == "swiglu":
            yield from self.linear(f"{path}.mlp.gate_proj", F, C)
        yield from self.linear(f"{path}.mlp.up_proj", F, C)
        yield from self.linear(f"{path}.mlp.down_proj", C, F, self.out_std)

    def flops_per_token(self, T: int) -> float:
        """The products with all matrices, and those with the keys and values that are visible."""
        matrices = sum(param.size for param in self.params() if param.group == "hidden")
        most = T if self.window is None else min(T, self.window + self.sinks)
        visible = (most * (most + 1) / 2 + (T - most) * most) / T  # mean over the window
        attention = self.n_layer * 4 * visible * self.n_head * self.head_size
        return 2 * matrices + attention + 2 * self.n_embd * self.vocab_size

    def decode_state_bytes(self, T: int, kind: str = "auto") -> int:
        """Keys and values of all tokens, or of those that a window still shows the next one."""
        seen = T if self.window is None else min(T, self.window - 1 + self.sinks)
        return 4 * self.n_layer * 2 * seen * self.kv_heads * self.head_size
