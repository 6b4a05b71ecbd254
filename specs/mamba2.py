"""mamba2, state-space duality (Dao & Gu, arXiv 2405.21060; official code state-spaces/mamba).

H heads of P = head_dim channels, di = expand·C = H·P; G groups, head h reads b and c of group
⌊h·G/H⌋; N = d_state. RMS is RMSNorm, in `out` over each of the G parts of di by itself.

    x = embed[tokens]                                       (B, T, C)
    L times:
        z, u, dt = RMS(x) Win                               di; di + 2·G·N; H
        u = silu(conv(u))       each channel by itself: Σ_j w_j u[t − d_conv + 1 + j] + bias
        u, b, c = u                                         (B, T, H, P), (B, T, G, N) twice
        Δ = clip(softplus(dt + dt_bias));  a = −exp(A_log)  (B, T, H), (H)
        S_t = exp(Δ_t a) S_{t−1} + Δ_t u_t b_tᵀ;  y_t = S_t c_t + D u_t          S (P, N)
        x = x + dropout(RMS(y ⊙ silu(z)) Wout)
    logits = RMS(x) Whead

There is no MLP. The duality (section 6): with l_ts = Σ_{s<i≤t} Δ_i a the output is also
y_t = Σ_{s≤t} (c_tᵀ b_s) exp(l_ts) Δ_s u_s, masked attention without softmax. Within chunks of
tokens it is computed like that, all pairs at once; between chunks there is the state. The size of
the chunks changes nothing but the cost. Decoding keeps S and the last d_conv − 1 inputs of the
convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from specs.base import Param, norm
from specs.init import constant, uniform
from specs.layered import Recurrent

DT = 1e-3, 0.1  # where initial time steps lie, evenly by their logarithm
A = 1.0, 16.0  # where initial decay rates −a lie


def dt_bias_init(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """What softplus makes the initial time steps of."""
    dt = np.exp(rng.uniform(np.log(DT[0]), np.log(DT[1]), shape))
    return dt + np.log(-np.expm1(-dt))


def a_log_init(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.log(rng.uniform(A[0], A[1], shape))


@dataclass(frozen=True, kw_only=True)
class Spec(Recurrent):
    """`time_step_limit`: the least and the largest Δ, the latter null for none. `chunk_size`:
    tokens that are read as pairs, which changes the cost alone."""

    d_state: int = 128
    d_conv: int = 4
    expand: int = 2
    head_dim: int = 64
    n_groups: int = 1
    chunk_size: int = 64
    time_step_limit: tuple[float, float | None] = (0.0, None)
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"n_layer": 2, "n_embd": 32, "d_state": 8, "head_dim": 16, "chunk_size": 8,
                 "vocab_size": 64, "block_size": 640},
        "demo": {"n_layer": 4, "n_embd": 96, "d_state": 32, "head_dim": 32, "block_size": 128},
        "256x4": {"n_layer": 4},
        "12m": {"n_layer": 12, "n_embd": 384},
        "130m": {"n_layer": 24, "n_embd": 768, "vocab_size": 50288, "block_size": 2048},
    }

    def validate(self) -> None:
        for name in ("d_state", "expand", "head_dim", "n_groups", "chunk_size"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("d_conv", self.d_conv >= 2, "at least 2")
        self.require("head_dim", self.inner % self.head_dim == 0,
                     f"a divisor of expand·n_embd = {self.inner}")
        self.require("n_groups", self.heads % self.n_groups == 0,
                     f"a divisor of the {self.heads} heads")
        # A group is normed, and of one number that would leave its sign alone
        self.require("n_groups", self.inner >= 2 * self.n_groups,
                     "such that a group has at least 2 channels")
        least, most = self.time_step_limit
        self.require("time_step_limit", least >= 0 and (most is None or most > least),
                     "[least, largest] with 0 <= least < largest, or null for the largest")
        self.require("norm_eps", self.norm_eps > 0, "positive")

    @property
    def inner(self) -> int:
        """di: channels of all heads."""
        return self.expand * self.n_embd

    @property
    def heads(self) -> int:
        """H."""
        return self.inner // self.head_dim

    @property
    def conv_width(self) -> int:
        """Channels of the convolution: u, b and c."""
        return self.inner + 2 * self.n_groups * self.d_state

    def layer(self, i: int, path: str) -> Iterator[Param]:
        """Initial weights are the official code's, where a layer has PyTorch's own."""
        C, di, H, wide, taps = self.n_embd, self.inner, self.heads, self.conv_width, self.d_conv
        mixer = f"{path}.mixer"
        yield from self.residual_norm(f"{path}.mixer_norm")
        yield Param(f"{mixer}.in_proj.weight", (di + wide + H, C), uniform(C**-0.5), "hidden")
        yield Param(f"{mixer}.conv_weight", (wide, taps), uniform(taps**-0.5), "filter")
        yield Param(f"{mixer}.conv_bias", (wide,), uniform(taps**-0.5), "vector")
        yield Param(f"{mixer}.dt_bias", (H,), dt_bias_init, "vector")
        yield Param(f"{mixer}.A_log", (H,), a_log_init, "vector")
        yield Param(f"{mixer}.D", (H,), constant(1), "vector")
        yield from norm(f"{mixer}.norm", di)
        yield Param(f"{mixer}.out_proj.weight", (C, di), uniform((di * self.n_layer) ** -0.5),
                    "hidden")

    def chunk_length(self, T: int) -> int:
        """Of the chunks that T tokens are cut into: as equal as can be, at most chunk_size."""
        return -(-T // -(-T // self.chunk_size))

    def flops_per_token(self, T: int) -> float:
        """The products with all matrices; c·b and the sum over u for the pairs in a chunk; what is
        written to the state and read from it; the convolution."""
        matrices = sum(param.size for param in self.params() if param.group in ("hidden", "filter"))
        length = self.chunk_length(T)
        seen = np.mean(np.arange(T) % length + 1)
        pairs = seen * 2 * (self.n_groups * self.d_state + self.inner)
        state = 2 * 2 * self.inner * self.d_state
        return (2 * matrices + self.n_layer * float(pairs + state)
                + 2 * self.n_embd * self.vocab_size)

    def decode_state_bytes(self, T: int, kind: str = "auto") -> int:
        """The same after any number of tokens: S, and the inputs that the convolution needs."""
        inputs = (self.d_conv - 1) * self.conv_width
        return 4 * self.n_layer * (self.inner * self.d_state + inputs)
