"""A table of names, read in both directions: our spec and weights ↔ upstream's config and tensors.

What upstream's class cannot say shows by itself: the config is read back, and the field that
came back as another is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specs import Param, Spec, UserError
from specs.backend import Arrays

REQUIRED = object()
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Key:
    """The keys of config.json that hold one field: all are written, those that are read must agree.

    `default`: upstream's, where there is none; `words`: upstream's words for our values, the
    first of which is written.
    """

    names: tuple[str, ...]
    default: Any = REQUIRED
    words: Mapping[Any, tuple[Any, ...]] | None = None

    def read(self, config: Mapping[str, Any]) -> Any:
        found = {name: config.get(name, self.default) for name in self.names}
        found = {name: value for name, value in found.items() if value is not REQUIRED}
        if not found:
            raise UserError(f"{self.names[0]!r} is missing")
        values = list(found.values())
        if any(value != values[0] for value in values):
            said = " and ".join(f"{name} = {value!r}" for name, value in found.items())
            raise UserError(f"{said}, which are one and the same in our architecture")
        if self.words is None:
            return values[0]
        for ours, theirs in self.words.items():
            if values[0] in theirs:
                return ours
        known = ", ".join(repr(word) for theirs in self.words.values() for word in theirs)
        raise UserError(f"{self.names[0]} = {values[0]!r} is not known, only {known}")

    def write(self, value: Any) -> dict[str, Any]:
        return dict.fromkeys(self.names, self.words[value][0] if self.words else value)


@dataclass(frozen=True)
class Form:
    """One of upstream's classes.

    `keys`: of our fields; `fixed`: fields that it has no key for, and what they are there;
    `demands`: keys that must be so (or missing), since our architecture has nothing else;
    `writes`: keys that are written and mean nothing to us. `names`: its words for the parts of
    a parameter's name, or for a whole name; `prefix`: what all names but the head's begin with, as
    we write them, and `other_prefix`, as others may. Parameters of ours that get one name are one
    tensor there, one below the other; `transposed`: matrices lie as (in, out), as in its Conv1D.
    """

    model_type: str
    title: str
    keys: Mapping[str, Key]
    fixed: Mapping[str, Any]
    names: Mapping[str, str]
    demands: Mapping[str, Any] = field(default_factory=dict)
    writes: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    other_prefix: str = ""
    transposed: bool = False

    def read_spec(self, kind: type[Spec], config: Mapping[str, Any]) -> Spec:
        """The spec that `config` means. Raises `UserError` that names the key which means more."""
        for name, value in self.demands.items():
            if config.get(name, value) != value:
                raise UserError(f"{name} = {config[name]!r} is nothing that our architecture has, "
                                f"only {value!r}")
        fields = {ours: key.read(config) for ours, key in self.keys.items()}
        return kind.from_dict({**self.fixed, **fields})

    def write_config(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """config.json for a spec with these fields. Raises `UserError` for a value that upstream
        has no word for."""
        config = {"architectures": [self.title], "model_type": self.model_type, "dtype": "float32",
                  **self.writes}
        for ours, key in self.keys.items():
            if key.words is not None and fields[ours] not in key.words:
                known = " or ".join(repr(word) for word in key.words)
                raise UserError(f"{ours} = {fields[ours]!r} cannot be exported: {self.title} has "
                                f"only {known}")
            config |= key.write(fields[ours])
        return config

    def tensors(self, table: Iterable[Param]) -> dict[str, list[Param]]:
        """{upstream's name: the parameters that it holds}, in the order of the table."""
        found: dict[str, list[Param]] = {}
        for param in table:
            parts = ".".join(self.names.get(part, part) for part in param.name.split("."))
            name = self.names.get(param.name, parts)
            found.setdefault(self.prefixed(name), []).append(param)
        return found

    def prefixed(self, name: str) -> str:
        bare = name.removeprefix(self.prefix).removeprefix(self.other_prefix)
        return bare if bare.startswith("lm_head.") else self.prefix + bare

    def turned(self, array: np.ndarray, params: list[Param]) -> np.ndarray:
        """To upstream's orientation of a matrix, and back."""
        return array.T if self.transposed and params[0].group == "hidden" else array

    def write_tensors(self, table: Iterable[Param], weights: Arrays) -> Arrays:
        return {name: self.turned(np.concatenate([weights[p.name] for p in params]), params)
                for name, params in self.tensors(table).items()}

    def read_tensors(self, table: Sequence[Param], tensors: Arrays) -> Arrays:
        """The weights of `table` in float32. Raises `UserError` that names the first tensor which
        is missing, unknown, of another shape, or no float."""
        left = {self.prefixed(name): tensor for name, tensor in tensors.items()}
        wanted = self.tensors(table)
        if HEAD not in wanted:
            self.drop_tied_head(left)
        weights: Arrays = {}
        for name, params in wanted.items():
            if name not in left:
                raise UserError(f"the tensors do not fit config.json: {name!r} is missing")
            tensor = self.turned(left.pop(name), params)
            rows = [param.shape[0] for param in params]
            shape = (sum(rows), *params[0].shape[1:])
            if tensor.shape != shape:
                order = -1 if self.transposed and params[0].group == "hidden" else 1
                raise UserError(f"the tensors do not fit config.json: {name} is "
                                f"{tensor.shape[::order]}, config.json says {shape[::order]}")
            if tensor.dtype.kind != "f":
                raise UserError(f"{name} holds {tensor.dtype} numbers: quantized weights must be "
                                "dequantized first")
            parts = np.split(tensor.astype(np.float32), np.cumsum(rows)[:-1])
            weights |= {param.name: part for param, part in zip(params, parts, strict=True)}
        if left:
            raise UserError(f"the tensors do not fit config.json: {min(left)!r} is unknown")
        return {param.name: weights[param.name] for param in table}

    def drop_tied_head(self, tensors: Arrays) -> None:
        """Forget a head that repeats the embedding. Raises `UserError` if it is another matrix."""
        head = tensors.pop(HEAD, None)
        embed = tensors.get(self.embedding)
        if head is not None and embed is not None and not np.array_equal(head, embed):
            raise UserError(f"tie_word_embeddings = true, yet {HEAD} is not the embedding")

    @property
    def embedding(self) -> str:
        return self.prefixed(f"{self.names.get('embed', 'embed')}.weight")


def require_same(wanted: Mapping[str, Any], said: Mapping[str, Any], title: str) -> None:
    """Raise `UserError` for the first field that `title` says otherwise."""
    for name, value in wanted.items():
        if said[name] != value:
            raise UserError(f"{name} = {value!r} cannot be exported: {title} has only "
                            f"{name} = {said[name]!r}")
