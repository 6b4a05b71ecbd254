"""toeplitz, heads that mix tokens by learned Toeplitz matrices (Roland & Badger, arXiv 2605.06683).

What a token takes from an earlier one depends on their distance alone: head h has one number for
each, and one bias for each position. D = C/H channels a head; all projections x Wᵀ + b.

    x = embed[tokens]                                       (B, T, C); no positions are added
    L times:
        u = RMS(x) Win + b                                  in heads (B, T, H, D); without
                                                            do_toep_proj RMS(x) itself
        a = softplus(kernel), or kernel where it is "raw"   (H, block_size)
        y_t = Σ_{s ≤ t} a[t − s] u_s                        (B, T, H, D)
        y_t = y_t / Σ_{k ≤ t} a[k]                          with do_toep_mean
        x = x + (y + kernel_bias[t]) Wout                   the same bias for a whole head
        h = RMS(x);  x = x + dropout(gelu_tanh(h Wup + b)) Wdown + b
    logits = RMS(x) Whead

Wout has no bias. With "raw" and do_toep_mean the sums that are divided by cross zero, at
initialisation about 14 times in a head of 512: there the function is ill-conditioned by itself.

The mixing is a causal convolution with H kernels (long_conv in {mlx,torch}_models/longconv.py);
decoding keeps u of all tokens, and may keep what these add to later ones ({mlx,torch}_models/
online.py). Dropout is inside the MLP alone, between its matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from specs.base import Param, linear, norm
from specs.init import Init, constant, normal
from specs.layered import Layered
from specs.online import KINDS, held, moved

STD = 0.2  # of all initial weights


@dataclass(frozen=True, kw_only=True)
class Spec(Layered):
    """`d_ff` None: C. The default is the better of the paper's variants, with softplus."""

    n_head: int = 4
    d_ff: int | None = None
    do_toep_mean: bool = False
    do_toep_proj: bool = True
    kernel: Literal["softplus", "raw"] = "softplus"
    norm_eps: float = 2.0**-23
    tie_embeddings: bool = False

    mlp: ClassVar[str] = "gelu_tanh"  # of gpt's MLP, which this one shares
    bias: ClassVar[bool] = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"n_layer": 2, "n_embd": 32, "d_ff": 48, "vocab_size": 64, "block_size": 640},
        "demo": {"n_layer": 4, "n_embd": 128, "d_ff": 256, "block_size": 128},
        "10m": {"n_layer": 8, "n_embd": 384, "n_head": 6, "d_ff": 1152, "block_size": 512},
        "original": {"n_layer": 10, "n_embd": 512, "n_head": 4, "d_ff": 512, "block_size": 512,
                     "vocab_size": 4096, "dropout": 0.1},
    }

    def validate(self) -> None:
        self.require("n_head", self.n_head >= 1, "at least 1")
        self.require("n_embd", self.n_embd % self.n_head == 0,
                     f"a multiple of n_head = {self.n_head}")
        self.require("d_ff", self.d_ff is None or self.d_ff >= 1, "null or at least 1")
        self.require("norm_eps", self.norm_eps > 0, "positive")

    @property
    def head_size(self) -> int:
        """D."""
        return self.n_embd // self.n_head

    @property
    def mlp_width(self) -> int:
        """F."""
        return self.d_ff or self.n_embd

    @property
    def max_length(self) -> int | None:
        """A kernel has no number for a longer distance."""
        return self.block_size

    def embed_init(self) -> Init:
        return normal(STD)

    def head_init(self) -> Init:
        return normal(STD)

    def layer(self, i: int, path: str) -> Iterator[Param]:
        C, F, distances = self.n_embd, self.mlp_width, (self.n_head, self.block_size)
        yield from norm(f"{path}.mixer_norm", C)
        if self.do_toep_proj:
            yield from linear(f"{path}.mixer.in_proj", C, C, STD, bias=True)
        yield Param(f"{path}.mixer.kernel", distances, normal(STD), "filter")
        yield Param(f"{path}.mixer.kernel_bias", distances, constant(0), "vector")
        if self.do_toep_proj:
            yield from linear(f"{path}.mixer.out_proj", C, C, STD)
        yield from norm(f"{path}.mlp_norm", C)
        yield from linear(f"{path}.mlp.up_proj", F, C, STD, bias=True)
        yield from linear(f"{path}.mlp.down_proj", C, F, STD, bias=True)

    @property
    def decode_kinds(self) -> tuple[str, ...]:
        return KINDS

    def flops_per_token(self, T: int) -> float:
        """The products with all matrices; and for each channel those with what is visible, or the
        transforms of 2T real entries there and back, 5·T·log₂ 2T each, and the product of the
        spectra, where these are less."""
        matrices = sum(param.size for param in self.params() if param.group == "hidden")
        mixing = min(T + 1, 10 * math.log2(2 * T) + 6 * (T + 1) / T)
        return (2 * matrices + self.n_layer * self.n_embd * mixing
                + 2 * self.n_embd * self.vocab_size)

    def decode_state_bytes(self, T: int, kind: str = "auto") -> int:
        """Rows of inputs, and of sums for later outputs, see specs/online.py."""
        return 4 * self.n_layer * self.n_embd * held(T, self.block_size, kind)

    def decode_traffic(self, T: int, kind: str = "auto") -> int:
        """All weights, but of the embedding; and of the rows held those that a token moves, on
        average."""
        weights = self.param_count() - self.n_embd * self.vocab_size * (not self.tie_embeddings)
        rows = moved(T, self.block_size, kind)
        return 4 * (weights + round(self.n_layer * self.n_embd * rows))
