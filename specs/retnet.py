"""retnet, the retentive network (Sun et al., arXiv 2307.08621; microsoft/torchscale).

Per head keys have dk = C/H entries, values dv = v_dim_multiplier·dk, and what a token wrote is
forgotten at the rate γ_h = 1 − 2^(−5−h); all projections x Wᵀ.

    x = embed[tokens] (· √C with embed_scale)               (B, T, C)
    L times:
        h = RMS(x);  q, k = RoPE(h Wq), RoPE(h Wk)/√dk      (B, H, T, dk)
        v = h Wv;  g = h Wg                                 (B, H, T, dv), (B, T, H·dv)
        o_t = Σ_{s ≤ t} γ^(t−s) (q_t·k_s) v_s               (B, H, T, dv)
        x = x + dropout((o/√(mean o² + HEAD_EPS) ⊙ silu(g)) Wo)
        h = RMS(x);  x = x + dropout((silu(h Wgate) ⊙ h Wup) Wdown)
    logits = RMS(x) Whead

RoPE turns adjacent pairs: (e cos − o sin, o cos + e sin), angle t·10000^(−i/(dk/2 − 1)) for pair i,
both ends included. Three forms of one function: *parallel*, o = (q kᵀ ⊙ D) v with D_ts = γ^(t−s);
*recurrent*, S ← γ S + kᵀv, o = q S; *chunkwise*, parallel inside a chunk of Q tokens, and S between
chunks: token i of a chunk reads γ^(i+1) q S, then S ← γ^Q S + Σ γ^(Q−1−i) kᵀv.

Left out: the published code's row normalisations, which cancel in the head norm. The scale of k
cancels there too, but not in S.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from specs.base import Param, norm, rotary_angles
from specs.init import Init, normal, uniform
from specs.layered import Recurrent

ROPE_BASE = 10000.0
HEAD_EPS = 1e-24  # only a head of zeros needs it; more would show in float64 behind small keys
CHUNK = 64  # tokens; a longer chunk costs more scores, a shorter one more states


@dataclass(frozen=True, kw_only=True)
class Spec(Recurrent):
    """`d_ff` None: 4·C/3, so that a layer has the paper's 12·C² weights."""

    n_head: int = 4
    v_dim_multiplier: int = 2
    d_ff: int | None = None
    norm_eps: float = 1e-6
    embed_scale: bool = True
    tie_embeddings: bool = True

    mlp: ClassVar[str] = "swiglu"  # of gpt's MLP, which this one shares
    bias: ClassVar[bool] = False

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"n_layer": 2, "n_embd": 32, "d_ff": 48, "vocab_size": 64, "block_size": 640},
        "demo": {"n_layer": 4, "n_embd": 96, "block_size": 128},
        "10m": {"n_embd": 384, "n_head": 6},
        "50m": {"n_layer": 12, "n_embd": 576, "n_head": 9, "block_size": 1024},
        "1.3b": {"n_layer": 24, "n_embd": 2048, "n_head": 8, "vocab_size": 50257,
                 "block_size": 2048},
    }

    def validate(self) -> None:
        self.require("n_head", self.n_head >= 1, "at least 1")
        self.require("n_embd", self.n_embd % (2 * self.n_head) == 0,
                     f"a multiple of 2·n_head = {2 * self.n_head}")
        self.require("v_dim_multiplier", self.v_dim_multiplier >= 1, "at least 1")
        self.require("d_ff", self.d_ff is None or self.d_ff >= 1, "null or at least 1")
        self.require("norm_eps", self.norm_eps > 0, "positive")

    @property
    def key_size(self) -> int:
        """dk."""
        return self.n_embd // self.n_head

    @property
    def value_size(self) -> int:
        """dv."""
        return self.v_dim_multiplier * self.key_size

    @property
    def mlp_width(self) -> int:
        """F."""
        return self.d_ff or self.n_embd * 4 // 3

    def embed_init(self) -> Init:
        return normal(self.n_embd**-0.5)

    def head_init(self) -> Init:
        return normal(self.n_embd**-0.5)

    def layer(self, i: int, path: str) -> Iterator[Param]:
        C, F, inner = self.n_embd, self.mlp_width, self.n_head * self.value_size
        yield from norm(f"{path}.mixer_norm", C)
        for name, out in (("q", C), ("k", C), ("v", inner), ("g", inner)):
            yield matrix(f"{path}.mixer.{name}_proj", out, C, xavier(out, C, 2**-2.5))
        yield matrix(f"{path}.mixer.o_proj", C, inner, xavier(C, inner, 0.5))
        yield from norm(f"{path}.mlp_norm", C)
        yield matrix(f"{path}.mlp.gate_proj", F, C, C**-0.5)
        yield matrix(f"{path}.mlp.up_proj", F, C, C**-0.5)
        yield matrix(f"{path}.mlp.down_proj", C, F, F**-0.5)

    def chunk(self, T: int) -> int:
        """How many tokens see each other pair by pair: all T, or CHUNK and the state before them.

        A head's FLOPs a token, halved, but for the passing on of states, a (T/CHUNK²)th of them:
        T·(dk + dv) in parallel, CHUNK·(dk + dv) + 2·dk·dv by chunks. So the parallel form wins up
        to CHUNK + 2·dk·dv/(dk + dv) tokens, 149 with heads of 64 and 128.
        """
        dk, dv = self.key_size, self.value_size
        parallel = (T - CHUNK) * (dk + dv) <= 2 * dk * dv
        return T if parallel else CHUNK

    def flops_per_token(self, T: int) -> float:
        """The products with all matrices; and in the cheaper form those of tokens that see each
        other, of all chunks but the first with a state, of all but the last for one."""
        matrices = sum(param.size for param in self.params() if param.group == "hidden")
        dk, dv, Q = self.key_size, self.value_size, self.chunk(T)
        rest = T % Q
        pairs = T // Q * Q * (Q + 1) / 2 + rest * (rest + 1) / 2
        read, written = T - Q, (T - rest if rest else T - Q)
        retention = 2 * pairs * (dk + dv) + 2 * (read + written) * dk * dv
        return (2 * matrices + self.n_layer * self.n_head * retention / T
                + 2 * self.n_embd * self.vocab_size)

    def decode_state_bytes(self, T: int, kind: str = "auto") -> int:
        """S of each head, however many tokens it stands for."""
        return 4 * self.n_layer * self.n_head * self.key_size * self.value_size

    def rotary(self, start: int, T: int) -> np.ndarray:
        """Angles at positions start … start+T−1, (T, dk/2) in float64."""
        frequency = ROPE_BASE ** -np.linspace(0, 1, self.key_size // 2)
        return rotary_angles(frequency, start, T)

    def decay(self, n: int, stride: int = 1) -> np.ndarray:
        """γ^(stride·(i − j)) for j ≤ i, else 0: (H, n + 1, n + 1) in float64."""
        gamma = 1 - 2.0 ** (-5 - np.arange(self.n_head))
        i = np.arange(n + 1)
        powers = gamma[:, None, None] ** (stride * np.maximum(i[:, None] - i, 0))
        return np.tril(powers)


def matrix(path: str, out: int, into: int, bound: float) -> Param:
    """A row of the table for x Wᵀ, W (out, into) drawn from U(−bound, bound)."""
    return Param(f"{path}.weight", (out, into), uniform(bound), "hidden")


def xavier(out: int, into: int, gain: float) -> float:
    """The bound of Glorot & Bengio, 2010."""
    return gain * (6 / (out + into)) ** 0.5
