"""hyena, long convolutions between gates (Poli et al., arXiv 2302.10866; HazyResearch/safari).

P = order; E = emb_dim, W = filter_order, N = block_size; LN is LayerNorm, ⊙ entry by entry, * the
causal convolution in time of each channel by itself; all projections x Wᵀ + b.

    x = embed[tokens]                                       (B, T, C)
    L times:
        u = LN(x) Win + b                                   (B, T, (P+1)·C)
        u = conv(u)     Σ_j w_j u[t − short_filter + 1 + j] + bias
        x_0, …, x_{P−1}, v = u                              (B, T, C) each
        for o = 0 … P−2:
            v = v ⊙ x_{P−1−o};  v = h_o * v + filter_bias_o ⊙ v
        x = x + dropout((v ⊙ x_0) Wout + b)
        h = LN(x);  x = x + dropout(gelu_tanh(h Wup + b) Wdown + b)
    logits = LN(x) Whead

The filters h_o (C, N) are not weights: a network says what they are at distance n, whatever T is.

    z = (n/(N−1), cos(f_k ω), −sin(f_k ω) for all k)        (E), ω = 2πn/N
    z = sin(freq ⊙ (z W1 + b)), the like with W2 and W3     (W); the same freq three times
    h_o[n] = z Wo ⊙ exp(−|δ| n/(N−1))                       o·C + c is row of Wo and place of δ

f_k are bands = (E−1)/2 numbers from 1e-4 to bands − 1, δ are (P−1)·C from ln 0.01/1.5 to
ln 0.01/0.3, both evenly. So there is no constant state; decoding keeps the inputs of each long
convolution, and those the short one needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from specs.base import Param, linear
from specs.init import constant, normal, uniform
from specs.layered import Layered
from specs.online import KINDS, held, moved

SLOWEST, FASTEST, TARGET = 1.5, 0.3, 1e-2  # a filter falls to TARGET at these shares of block_size
TEXT = {"emb_dim": 33, "filter_w": 14.0}  # as the paper's models of text are


@dataclass(frozen=True, kw_only=True)
class Spec(Layered):
    """`filter_w`: what freq begins with; `d_ff` None: 2·C."""

    order: int = 2
    filter_order: int = 64
    emb_dim: int = 3
    short_filter: int = 3
    filter_w: float = 1.0
    d_ff: int | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    norm = "layernorm"
    mlp: ClassVar[str] = "gelu_tanh"  # of gpt's MLP, which this one shares
    bias: ClassVar[bool] = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"n_layer": 2, "n_embd": 32, "filter_order": 16, "emb_dim": 5, "filter_w": 3.0,
                 "d_ff": 48, "vocab_size": 64, "block_size": 640},
        "demo": {**TEXT, "n_layer": 4, "n_embd": 128, "filter_order": 32, "block_size": 128},
        "10m": {**TEXT, "n_layer": 8, "n_embd": 384},
        "125m": {**TEXT, "n_layer": 18, "n_embd": 768, "vocab_size": 50257, "block_size": 2048},
    }

    def validate(self) -> None:
        self.require("block_size", self.block_size >= 2, "at least 2")
        self.require("order", self.order >= 2, "at least 2")
        self.require("filter_order", self.filter_order >= 1, "at least 1")
        self.require("emb_dim", self.emb_dim >= 3 and self.emb_dim % 2 == 1,
                     "odd and at least 3")
        self.require("short_filter", self.short_filter >= 2, "at least 2")
        self.require("filter_w", self.filter_w > 0, "positive")
        self.require("d_ff", self.d_ff is None or self.d_ff >= 1, "null or at least 1")
        self.require("norm_eps", self.norm_eps > 0, "positive")

    @property
    def mlp_width(self) -> int:
        """F."""
        return self.d_ff or 2 * self.n_embd

    @property
    def filters(self) -> int:
        """Of a layer: one for each channel and long convolution."""
        return (self.order - 1) * self.n_embd

    @property
    def max_length(self) -> int | None:
        """A filter ends there."""
        return self.block_size

    @property
    def decode_kinds(self) -> tuple[str, ...]:
        return KINDS

    def layer(self, i: int, path: str) -> Iterator[Param]:
        """Initial weights are the official code's. Its network of the filters does not decay, and
        its matrices, which are small and none of them takes part in every token, are not Muon's."""
        C, F, W = self.n_embd, self.mlp_width, self.filter_order
        wide, taps = (self.order + 1) * C, self.short_filter
        mixer, network = f"{path}.mixer", f"{path}.mixer.filter"
        yield from self.residual_norm(f"{path}.mixer_norm")
        yield from linear(f"{mixer}.in_proj", wide, C, bias=True)
        yield Param(f"{mixer}.conv_weight", (wide, taps), uniform(taps**-0.5), "filter")
        yield Param(f"{mixer}.conv_bias", (wide,), uniform(taps**-0.5), "vector")
        for name, into in (("l1", self.emb_dim), ("l2", W), ("l3", W)):
            yield Param(f"{network}.{name}.weight", (W, into), normal(0.02), "vector")
            yield Param(f"{network}.{name}.bias", (W,), constant(0), "vector")
        yield Param(f"{network}.freq", (W,), constant(self.filter_w), "vector")
        yield Param(f"{network}.out.weight", (self.filters, W), normal(0.02), "vector")
        yield Param(f"{mixer}.filter_bias", (self.order - 1, C), normal(1), "vector")
        yield from linear(f"{mixer}.out_proj", C, C, self.out_std, bias=True)
        yield from self.residual_norm(f"{path}.mlp_norm")
        yield from linear(f"{path}.mlp.up_proj", F, C, bias=True)
        yield from linear(f"{path}.mlp.down_proj", C, F, self.out_std, bias=True)

    def features(self) -> np.ndarray:
        """What the network of the filters reads at each distance, (N, E) in float64."""
        bands, n = (self.emb_dim - 1) // 2, np.arange(self.block_size)
        angle = np.outer(2 * np.pi * n / self.block_size, np.linspace(1e-4, bands - 1, bands))
        return np.column_stack([n / (self.block_size - 1), np.cos(angle), -np.sin(angle)])

    def decay(self) -> np.ndarray:
        """What the filters are multiplied by at each distance, (N, (P−1)·C) in float64."""
        rates = np.linspace(-np.log(TARGET) / SLOWEST, -np.log(TARGET) / FASTEST, self.filters)
        return np.exp(-np.outer(np.arange(self.block_size) / (self.block_size - 1), rates))

    def flops_per_token(self, T: int) -> float:
        """The products with all matrices and short convolutions; and those of the long ones, all
        pairs or by spectra of 2T entries, whichever is less: three transforms, each
        5/2·2T·log₂ 2T, and a product of T + 1 complex numbers. The filters are the same for all
        texts of a batch, and left out."""
        matrices = sum(param.size for param in self.params() if param.group in ("hidden", "filter"))
        spectra = 15 * np.log2(2 * T) + 6 * (T + 1) / T
        return (2 * matrices + self.n_layer * self.filters * float(min(T + 1, spectra))
                + 2 * self.n_embd * self.vocab_size)

    def decode_state_bytes(self, T: int, kind: str = "auto") -> int:
        """The inputs that the short convolution needs; of the long ones, see specs/online.py."""
        short = (self.short_filter - 1) * (self.order + 1) * self.n_embd
        return 4 * self.n_layer * (short + held(T, self.block_size, kind) * self.filters)

    def decode_traffic(self, T: int, kind: str = "auto") -> int:
        """All weights, but of the tables that are only looked up in and of the networks of the
        filters; what the convolutions move, and as many taps of theirs."""
        network = sum(param.size for param in self.params() if ".filter." in param.name)
        rows = moved(T, self.block_size, kind)
        short = 2 * self.decode_state_bytes(0)
        return (super().decode_traffic(0) - self.decode_state_bytes(0) - 4 * network + short
                + round(2 * 4 * self.n_layer * self.filters * rows))
