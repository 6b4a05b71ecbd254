"""What an architecture is, apart from any framework: its fields, its parameter table, its costs.

Letters used in every file: B batch, T time, C width, H heads, D head size, F mlp width,
E experts, N state, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from specs.errors import UserError
from specs.init import Init, constant, normal

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

MOST_LAYERS = 1000  # deeper than any model published; a table of millions would never end
Group = Literal["hidden", "embed", "head", "router", "filter", "vector", "state"]


@dataclass(frozen=True)
class Param:
    """One tensor of the parameter table.

    `group` decides who trains it: Muon takes the matrices of "hidden", AdamW everything else;
    weight decay spares "vector" (norm weights, biases, low-rank factors). "filter" are the taps of
    convolutions; "state" is kept with the weights and trained by none. `matrix` is (rows, columns)
    of the matrices that a hidden tensor is a stack of, when these are not its last two axes. AdamW
    moves the tensor at `lr_scale` times the rate.
    """

    name: str
    shape: tuple[int, ...]
    init: Init
    group: Group
    matrix: tuple[int, int] | None = None
    lr_scale: float = 1.0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def trained(self) -> bool:
        return self.group != "state"

    @property
    def decays(self) -> bool:
        return self.group != "vector"

    @property
    def stack(self) -> tuple[int, int, int]:
        """(matrices, rows, columns): how Muon looks at a hidden tensor."""
        rows, columns = self.matrix or self.shape[-2:]
        return self.size // (rows * columns), rows, columns


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Fields that every architecture has. Raises `UserError`, naming the field, on a bad value."""

    vocab_size: int = 256
    block_size: int = 512
    n_layer: int = 6
    n_embd: int = 256
    dropout: float = 0.0

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    foreign_keys: ClassVar[tuple[str, ...]] = ()  # in official checkpoints, no parameters of ours

    def __post_init__(self) -> None:
        coerce_fields(self)
        for name in ("vocab_size", "block_size", "n_layer", "n_embd"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("n_layer", self.n_layer <= MOST_LAYERS, f"at most {MOST_LAYERS}")
        self.require("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self.validate()

    def validate(self) -> None:
        """Check what only this architecture knows."""

    def require(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            raise UserError(f"{self.arch}: {name} = {getattr(self, name)!r} must be {wanted}")

    @property
    def arch(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def head_name(self) -> str:
        """The parameter that turns the last layer's output into logits."""
        return "lm_head.weight"

    @property
    def noisy(self) -> bool:
        """Whether training draws random numbers, so that batches need keys."""
        return self.dropout > 0

    @property
    def routed(self) -> bool:
        """Whether tokens choose experts: training then balances their load and reports it."""
        return False

    def decode_traffic(self, T: int, kind: str = "auto") -> int:
        """Bytes that decoding one token of one sequence after T tokens must move, in float32."""
        raise TypeError(f"{self.arch} does not count its decoding traffic")

    @property
    def decode_kinds(self) -> tuple[str, ...]:
        """The states that decoding can keep."""
        return ("cache",)

    @property
    def max_length(self) -> int | None:
        """Tokens that a sequence may have; None: any number."""
        return None

    def params(self) -> tuple[Param, ...]:
        """The parameter table: the only source of names, shapes and initial values."""
        raise TypeError(f"{self.arch} has no parameter table")

    def flops_per_token(self, T: int) -> float:
        """FLOPs of a forward pass per token, on average over a window of T tokens."""
        raise TypeError(f"{self.arch} does not count its FLOPs")

    def decode_state_bytes(self, T: int, kind: str = "auto") -> int:
        """Bytes that decoding holds for one sequence after T tokens, in float32."""
        raise TypeError(f"{self.arch} does not count its decoding state")

    def away_from_poles(self, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`weights`, or others like them where the function has a pole next to these: there
        rounding decides, and there is nothing to compare."""
        return weights

    def check_decode_kind(self, kind: str) -> None:
        """Raise `UserError` unless decoding has this kind of state."""
        if kind not in self.decode_kinds:
            raise UserError(f"{self.arch} cannot decode with the state {kind!r}"
                            + did_you_mean(kind, list(self.decode_kinds)))

    def check_length(self, length: int) -> None:
        """Raise `UserError` for a sequence of so many tokens if it may not be as long."""
        if self.max_length is not None and length > self.max_length:
            raise UserError(f"{self.arch}: a sequence of {length} tokens is too long, this model "
                            f"knows {self.max_length} positions (its block_size): give fewer")

    def param_count(self) -> int:
        return sum(param.size for param in self.params())

    def active_param_count(self) -> int:
        """Parameters that one token meets."""
        return self.param_count()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def replace(self, **fields: Any) -> Self:
        return self.from_dict({**self.to_dict(), **fields})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise UserError(f"{cls.__module__.rpartition('.')[2]} has no field {name!r}"
                                + did_you_mean(name, known))
        return cls(**fields)

    @classmethod
    def preset(cls, name: str, **fields: Any) -> Self:
        if name not in cls.presets:
            raise UserError(f"{cls.__module__.rpartition('.')[2]} has no preset {name!r}"
                            + did_you_mean(name, list(cls.presets)))
        return cls.from_dict({**cls.presets[name], **fields})


def linear(path: str, out: int, into: int, std: float = 0.02,
           bias: bool = False) -> Iterator[Param]:
    """Rows of the table for x Wᵀ (+ b), W (out, into) drawn from N(0, std²)."""
    yield Param(f"{path}.weight", (out, into), normal(std), "hidden")
    if bias:
        yield Param(f"{path}.bias", (out,), constant(0), "vector")


def norm(path: str, dims: int, bias: bool = False) -> Iterator[Param]:
    """Rows of the table for a norm of `dims` entries."""
    yield Param(f"{path}.weight", (dims,), constant(1), "vector")
    if bias:
        yield Param(f"{path}.bias", (dims,), constant(0), "vector")


def rotary_frequencies(dim: int, theta: float) -> np.ndarray:
    """theta^(−2i/dim) in radians a token, (dim/2,) in float64 (Su et al., arXiv 2104.09864)."""
    return theta ** (-np.arange(0, dim, 2) / dim)


def rotary_angles(frequencies: np.ndarray, start: int, T: int) -> np.ndarray:
    """Angles at positions start … start+T−1, (T, dim/2) in float64: only their cosines and sines
    are rounded, so far positions stay exact."""
    return np.outer(np.arange(start, start + T), frequencies)


def parse_field(text: str) -> tuple[str, Any]:
    """(field, value) of "FIELD=VALUE" from a command line: JSON where it is, else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text} must be FIELD=VALUE, such as --set n_layer=8")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error message: the closest known word, then all of them."""
    close = difflib.get_close_matches(word, known, 1)
    return (f"; did you mean {close[0]!r}?" if close else ".") + f" It has: {', '.join(known)}"


def coerce_fields(made: Any) -> None:
    """Give the fields of a frozen dataclass their types, or raise a `UserError` that names one."""
    hints = typing.get_type_hints(type(made))
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        object.__setattr__(made, field.name, _coerce(field.name, value, hints[field.name]))


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type of the field, or a `UserError` that names field, value and type."""
    choices = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        kind = next(choice for choice in choices if choice is not type(None))
        return None if value is None else _coerce(name, value, kind)
    if typing.get_origin(hint) is Literal:
        if value in choices:
            return value
        raise UserError(f"{name} = {value!r} must be one of {', '.join(map(str, choices))}")
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(choices):
            raise UserError(f"{name} = {value!r} must be a list of {len(choices)} values")
        return tuple(_coerce(f"{name}[{i}]", each, choice)
                     for i, (each, choice) in enumerate(zip(value, choices, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
        raise UserError(f"{name} = {value!r} must be {wanted.get(hint, hint)}")
    return value
