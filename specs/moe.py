"""moe, the transformer whose MLP is a mixture of experts: Mixtral, Qwen3-MoE, and with shared
experts and balance by bias the mixture of DeepSeek-V3.

Shazeer et al., arXiv 1701.06538; Fedus et al. (Switch), arXiv 2101.03961; Jiang et al. (Mixtral),
arXiv 2401.04088; Zoph et al. (ST-MoE), arXiv 2202.08906; DeepSeek-AI, arXiv 2412.19437.
Attention, norms and rotary positions are those of gpt in Llama's form (specs/gpt.py).

    x = embed[tokens] (· √C with embed_scale)                (B, T, C)
    L times:
        x = x + dropout(attention(norm(x)))
        h = norm(x);  l = h Wrouter                          (B, T, E), in float32
        p = softmax(l);  S = the k experts of largest p (+ balance_bias)
        g_e = p_e / Σ_S p with norm_topk_prob, else p_e      for e in S
        x = x + dropout(Σ_S g_e expert_e(h) + shared(h))
    logits = norm(x) Whead

    expert_e(h) = (silu(h Wgate_e) ⊙ h Wup_e) Wdown_e, or act(h Wup_e) Wdown_e with gelu and silu

No token is ever dropped. In training l carries the noise router_noise · n, where n is a sum of four
uniform numbers of mean 0 and variance 1, drawn like dropout's; and the loss carries, for each
layer, means over the rows of

    aux_loss_coef · E Σ_e f_e p̄_e                            1 where all is equal
    z_loss_coef · mean logsumexp(l)²

f_e: the share of the row's T·k assignments that went to e (no gradient), p̄_e: the mean of p_e over
the row. Balance is counted in each row by itself, so a batch can be split in any way. With
balance = "bias" aux_loss_coef is 0 unless it is given, and each update moves balance_bias, which
decides who is chosen and nothing else, by ±BALANCE_STEP towards equal load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from specs.base import Param, norm
from specs.gpt import GroupedHeads
from specs.init import constant, normal

BALANCE_STEP = 1e-3


@dataclass(frozen=True, kw_only=True)
class Spec(GroupedHeads):
    """The default is Mixtral's form with tied embeddings. `None` means: decided from the rest."""

    n_head: int = 4
    n_kv_head: int | None = None
    head_dim: int | None = None
    d_ff: int | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    qk_norm: bool = False
    tie_embeddings: bool = True
    n_experts: int = 8
    n_experts_per_tok: int = 2
    expert_mlp: Literal["swiglu", "gelu", "silu"] = "swiglu"
    n_shared_experts: int = 0
    norm_topk_prob: bool = True
    router_noise: float = 0.0
    balance: Literal["loss", "bias"] = "loss"
    aux_loss_coef: float | None = None
    z_loss_coef: float = 0.0
    embed_scale: bool = False

    # What gpt's attention and model, which this one shares, have as options
    pos: ClassVar[str] = "rope"
    window: ClassVar[None] = None
    sinks: ClassVar[int] = 0
    logit_softcap: ClassVar[None] = None

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"n_layer": 2, "n_embd": 32, "n_kv_head": 2, "d_ff": 24, "n_experts": 4,
                 "vocab_size": 64, "block_size": 640},
        "demo": {"n_layer": 4, "n_embd": 96, "d_ff": 128, "block_size": 128},
        "384x6": {"n_embd": 384, "n_head": 8, "d_ff": 1536, "expert_mlp": "silu", "dropout": 0.1,
                  "vocab_size": 49152, "embed_scale": True},
        "mixtral": {"n_layer": 4, "n_head": 8, "n_kv_head": 2, "d_ff": 896, "rope_theta": 1e6,
                    "tie_embeddings": False},
        "qwen3": {"n_layer": 4, "n_head": 8, "n_kv_head": 2, "head_dim": 64, "qk_norm": True,
                  "d_ff": 192, "n_experts": 32, "n_experts_per_tok": 4, "norm_eps": 1e-6,
                  "rope_theta": 1e6, "aux_loss_coef": 1e-3},
    }

    def validate(self) -> None:
        self.require_heads(rotary=True)
        self.require("d_ff", self.d_ff is None or self.d_ff >= 1, "null or at least 1")
        self.require("norm_eps", self.norm_eps > 0, "positive")
        self.require("n_experts", self.n_experts >= 1, "at least 1")
        self.require("n_experts_per_tok", 1 <= self.n_experts_per_tok <= self.n_experts,
                     f"between 1 and n_experts = {self.n_experts}")
        self.require("n_shared_experts", self.n_shared_experts >= 0, "0 or more")
        self.require("aux_loss_coef", (self.aux_loss_coef or 0) >= 0, "null, or 0 or more")
        for name in ("router_noise", "z_loss_coef"):
            self.require(name, getattr(self, name) >= 0, "0 or more")

    @property
    def expert_width(self) -> int:
        """F: by default 4·C, or 8·C/3 where three matrices take the place of two."""
        return self.d_ff or self.n_embd * (8 if self.expert_mlp == "swiglu" else 12) // 3

    @property
    def balance_coef(self) -> float:
        """What aux_loss counts: by default 0.01, and nothing beside the bias."""
        if self.aux_loss_coef is None:
            return 0.01 if self.balance == "loss" else 0.0
        return self.aux_loss_coef

    @property
    def mlp(self) -> str:
        """The shared experts are one MLP of gpt's: its activation …"""
        return "swiglu"

    @property
    def mlp_width(self) -> int:
        """… and its width."""
        return self.n_shared_experts * self.expert_width

    @property
    def noisy(self) -> bool:
        return self.dropout > 0 or self.router_noise > 0

    @property
    def routed(self) -> bool:
        return True

    def layer(self, i: int, path: str) -> Iterator[Param]:
        C, E, F = self.n_embd, self.n_experts, self.expert_width
        yield from norm(f"{path}.mixer_norm", C)
        yield from self.attention(f"{path}.mixer")
        yield from norm(f"{path}.mlp_norm", C)
        yield Param(f"{path}.mlp.router.weight", (E, C), normal(0.02), "router")
        if self.balance == "bias":
            yield Param(f"{path}.mlp.balance_bias", (E,), constant(0), "state")
        if self.expert_mlp == "swiglu":
            yield Param(f"{path}.mlp.experts.gate_proj", (E, F, C), normal(0.02), "hidden")
        yield Param(f"{path}.mlp.experts.up_proj", (E, F, C), normal(0.02), "hidden")
        yield Param(f"{path}.mlp.experts.down_proj", (E, C, F), normal(self.out_std), "hidden")
        if self.n_shared_experts:
            yield from self.linear(f"{path}.mlp.shared.gate_proj", self.mlp_width, C)
            yield from self.linear(f"{path}.mlp.shared.up_proj", self.mlp_width, C)
            yield from self.linear(f"{path}.mlp.shared.down_proj", C, self.mlp_width, self.out_std)

    def active_param_count(self) -> int:
        """All, but of the experts those that one token chooses."""
        idle = self.n_experts - self.n_experts_per_tok
        return self.param_count() - sum(
            param.size // self.n_experts * idle for param in self.params() if len(param.shape) == 3)

    def flops_per_token(self, T: int) -> float:
        """The products with the matrices that a token meets, and with the keys and values."""
        tables = self.n_embd * self.vocab_size * (1 if self.tie_embeddings else 2)
        vectors = sum(param.size for param in self.params() if len(param.shape) == 1)
        matrices = self.active_param_count() - tables - vectors
        attention = self.n_layer * 2 * (T + 1) * self.n_head * self.head_size
        return 2 * matrices + attention + 2 * self.n_embd * self.vocab_size

    def decode_state_bytes(self, T: int, kind: str = "auto") -> int:
        """Keys and values of all tokens."""
        return 4 * self.n_layer * 2 * T * self.kv_heads * self.head_size

    def decode_traffic(self, T: int, kind: str = "auto") -> int:
        """The weights that a token meets, but of the table that is only looked up in; keys and
        values are read."""
        unread = 0 if self.tie_embeddings else self.n_embd * self.vocab_size
        return 4 * (self.active_param_count() - unread) + self.decode_state_bytes(T, kind)
