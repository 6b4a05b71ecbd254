"""The frame that most architectures share: an embedding, layers, a norm, a head.

    x = embed[tokens];  L times: x = layer(x);  logits = norm(x) Wheadᵀ

The head is the embedding's own table where `tie_embeddings` is true. The models' side of it is
`LanguageModel` in {mlx,torch}_models/model.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from specs import base
from specs.base import Param, norm
from specs.init import Init, normal


class Layered(base.Spec):
    """A spec of this frame: declares `norm_eps` and `tie_embeddings`, and tells its layers."""

    norm: str = "rmsnorm"  # or "layernorm", which has a bias
    norm_eps: float
    tie_embeddings: bool

    @property
    def head_name(self) -> str:
        return "embed.weight" if self.tie_embeddings else "lm_head.weight"

    def layer(self, i: int, path: str) -> Iterator[Param]:
        """The parameters of layer i, whose names begin with `path`."""
        raise TypeError(f"{self.arch} does not tell its layers")

    def embed_init(self) -> Init:
        return normal(0.02)

    def head_init(self) -> Init:
        return normal(0.02)

    def params(self) -> tuple[Param, ...]:
        C, V = self.n_embd, self.vocab_size
        table = [Param("embed.weight", (V, C), self.embed_init(), "embed")]
        for i in range(self.n_layer):
            table += self.layer(i, f"layers.{i}")
        table += self.residual_norm("norm")
        if not self.tie_embeddings:
            table += [Param("lm_head.weight", (V, C), self.head_init(), "head")]
        return tuple(table)

    def residual_norm(self, path: str) -> Iterator[Param]:
        """The parameters of a norm of the residual stream."""
        return norm(path, self.n_embd, self.norm == "layernorm")

    @property
    def out_std(self) -> float:
        """Of the initial weights of each projection that joins the residual stream (GPT-2)."""
        return 0.02 / (2 * self.n_layer) ** 0.5

    def decode_traffic(self, T: int, kind: str = "auto") -> int:
        """All weights, but of the tables that are only looked up in; the state is read."""
        head = self.n_embd * self.vocab_size
        layers = sum(param.size for param in self.params() if param.group not in ("embed", "head"))
        return 4 * (layers + head) + self.decode_state_bytes(T, kind)


class Recurrent(Layered):
    """A spec whose decoding keeps a state of constant size, read and written by each token."""

    @property
    def decode_kinds(self) -> tuple[str, ...]:
        return ("recurrent",)

    def decode_traffic(self, T: int, kind: str = "auto") -> int:
        """All weights, but of the tables that are only looked up in; the state twice."""
        return super().decode_traffic(T, kind) + self.decode_state_bytes(T, kind)
