"""mla, multi-head latent attention (DeepSeek-AI, DeepSeek-V2, arXiv 2405.04434) with SwiGLU.

Keys and values of all heads are read off one latent c of `kv_lora_rank` numbers a token, and a
rotary key that all heads share. RMS is RMSNorm; projections x Wᵀ (+ b with attn_bias, on Wqa, Wkva
and Wo alone); rope = qk_rope_head_dim, nope = qk_nope_head_dim, v = v_head_dim.

    x = embed[tokens]                                       (B, T, C)
    L times:
        h = RMS(x);  q = RMS(h Wqa) Wqb                     (B, H, T, nope + rope); or q = h Wq
        [c, r] = h Wkva;  c = RMS(c);  r = RoPE(r)          (B, T, rkv), (B, T, rope)
        [k, u] = c Wkvb                                     (B, H, T, nope), (B, H, T, v)
        q = [q_nope, RoPE(q_rope)];  k = [k, r]             the same r in every head
        x = x + dropout(softmax(q kᵀ/√(nope + rope), s ≤ t) u Wo)
        h = RMS(x);  x = x + dropout((silu(h Wgate) ⊙ h Wup) Wdown)
    logits = RMS(x) Whead

RoPE turns adjacent pairs: (e cos − o sin, o cos + e sin), angle t·rope_theta^(−2i/rope).
Decoding keeps (c, r) alone. Wkvb is linear, so its key part can go to the query and its value part
behind the weighted sum, q·(c Wk) = (q Wkᵀ)·c: attention is then to the latents themselves.
Left out: DeepSeek's experts, its long-context scaling (mscale), and tokens predicted ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from specs.base import Param, linear, norm, rotary_angles, rotary_frequencies
from specs.layered import Layered

NOTE = {"vocab_size": 49152, "n_embd": 512, "n_head": 8, "q_lora_rank": 128, "kv_lora_rank": 128,
        "qk_nope_head_dim": 0, "qk_rope_head_dim": 64, "v_head_dim": 64, "attn_bias": True}


@dataclass(frozen=True, kw_only=True)
class Spec(Layered):
    """The default has no bottleneck before the queries. `None` means: decided from the rest."""

    n_head: int = 4
    q_lora_rank: int | None = None
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 48
    qk_rope_head_dim: int = 16
    v_head_dim: int = 64
    attn_bias: bool = False
    d_ff: int | None = None
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_embeddings: bool = True

    # What gpt's block and model, which this one shares, have as options
    pos: ClassVar[str] = "rope"
    mlp: ClassVar[str] = "swiglu"
    bias: ClassVar[bool] = False
    window: ClassVar[None] = None
    sinks: ClassVar[int] = 0
    logit_softcap: ClassVar[None] = None

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"n_layer": 2, "n_embd": 32, "q_lora_rank": 12, "kv_lora_rank": 16, "d_ff": 48,
                 "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 6,
                 "vocab_size": 64, "block_size": 640},
        "demo": {"n_layer": 4, "n_embd": 96, "q_lora_rank": 48, "kv_lora_rank": 32,
                 "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24,
                 "block_size": 128},
        "deepseek-v2": {"n_embd": 384, "n_head": 6, "q_lora_rank": 192, "kv_lora_rank": 128,
                        "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
                        "tie_embeddings": False},
        "mla-512x3": {**NOTE, "d_ff": 2048, "n_layer": 3},
        "mla-512x12": {**NOTE, "d_ff": 2048, "n_layer": 12},
    }

    def validate(self) -> None:
        for name in ("n_head", "v_head_dim"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        # A latent is normed, and of one number that would leave its sign alone
        self.require("kv_lora_rank", self.kv_lora_rank >= 2, "at least 2")
        self.require("q_lora_rank", self.q_lora_rank is None or self.q_lora_rank >= 2,
                     "null or at least 2")
        self.require("d_ff", self.d_ff is None or self.d_ff >= 1, "null or at least 1")
        self.require("qk_nope_head_dim", self.qk_nope_head_dim >= 0, "at least 0")
        self.require("qk_rope_head_dim", self.qk_rope_head_dim >= 2
                     and self.qk_rope_head_dim % 2 == 0, "even and at least 2")
        self.require("norm_eps", self.norm_eps > 0, "positive")
        self.require("rope_theta", self.rope_theta > 0, "positive")

    @property
    def head_size(self) -> int:
        """Entries of a query or key: content, then rotary."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def mlp_width(self) -> int:
        """F: by default 8·C/3, three matrices in the place of two."""
        return self.d_ff or self.n_embd * 8 // 3

    def layer(self, i: int, path: str) -> Iterator[Param]:
        C, H, F, bias = self.n_embd, self.n_head, self.mlp_width, self.attn_bias
        rq, rkv, rope = self.q_lora_rank, self.kv_lora_rank, self.qk_rope_head_dim
        yield from norm(f"{path}.mixer_norm", C)
        if rq is None:
            yield from linear(f"{path}.mixer.q_proj", H * self.head_size, C)
        else:
            yield from linear(f"{path}.mixer.q_a_proj", rq, C, bias=bias)
            yield from norm(f"{path}.mixer.q_a_norm", rq)
            yield from linear(f"{path}.mixer.q_b_proj", H * self.head_size, rq)
        yield from linear(f"{path}.mixer.kv_a_proj", rkv + rope, C, bias=bias)
        yield from norm(f"{path}.mixer.kv_a_norm", rkv)
        yield from linear(f"{path}.mixer.kv_b_proj",
                          H * (self.qk_nope_head_dim + self.v_head_dim), rkv)
        yield from linear(f"{path}.mixer.o_proj", C, H * self.v_head_dim, self.out_std, bias)
        yield from norm(f"{path}.mlp_norm", C)
        yield from linear(f"{path}.mlp.gate_proj", F, C)
        yield from linear(f"{path}.mlp.up_proj", F, C)
        yield from linear(f"{path}.mlp.down_proj", C, F, self.out_std)

    def absorbs(self, T: int, S: int) -> bool:
        """Whether T new tokens behind S − T earlier ones should attend to the latents themselves.

        A head's FLOPs, halved. Ordinary attention first makes keys and values of all S latents:
        S·rkv·(nope + v), then T·S·(nope + rope + v). To the latents it is T·rkv·(nope + v) around
        T·S·(2·rkv + rope), or rkv + rope with nope = 0. So few tokens behind many absorb: at most
        rkv·(nope + v) / (2·rkv − nope − v) of them, 170 in DeepSeek-V2 (128 in mla-512x3). These
        are also the ones for whom bytes count: rkv + rope numbers are read for each of S tokens,
        and not H·(nope + v) made and read.
        """
        rkv, made = self.kv_lora_rank, self.qk_nope_head_dim + self.v_head_dim
        read = 2 * rkv if self.qk_nope_head_dim else rkv
        return T < S and T * S * (read - made) < (S - T) * rkv * made

    def flops_per_token(self, T: int) -> float:
        """The products with all matrices, and those with the keys and values that are visible."""
        matrices = sum(param.size for param in self.params() if param.group == "hidden")
        attention = 2 * self.n_head * (self.head_size + self.v_head_dim) * (T + 1) / 2
        return 2 * matrices + self.n_layer * attention + 2 * self.n_embd * self.vocab_size

    def decode_state_bytes(self, T: int, kind: str = "auto") -> int:
        """Latents and rotated keys of all tokens."""
        return 4 * self.n_layer * T * (self.kv_lora_rank + self.qk_rope_head_dim)

    def rotary(self, start: int, T: int) -> np.ndarray:
        """Angles at positions start … start+T−1, (T, rope/2) in float64."""
        frequencies = rotary_frequencies(self.qk_rope_head_dim, self.rope_theta)
        return rotary_angles(frequencies, start, T)
