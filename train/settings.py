"""How a run is trained: everything that its config.json holds besides the model's spec."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from specs.base import coerce_fields
from specs.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Defaults suit a laptop and the smallest presets. `None` means: decided from the rest."""

    data: str = "builtin"
    data_config: str | None = None
    data_split: str = "train"
    text_column: str | None = None
    stream: bool = False
    data_tokens: int | None = None
    tokenizer: str = "bytes"
    init: str | None = None

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 16
    micro_batch: int | None = None
    memory: int | None = None
    seq_curriculum: tuple[int, int] | None = None

    optimizer: str = "adamw"
    lr: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    schedule: str = "cosine"
    warmup: int | None = None
    min_lr: float = 0.1
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    dtype: str = "float32"
    recompute: bool = False
    attention: str = "sdpa"
    compile: bool = False
    seed: int = 0

    log_every: int = 10
    eval_every: int = 100
    eval_windows: int = 64
    save_every: int = 200
    keep: int = 2

    def __post_init__(self) -> None:
        coerce_fields(self)
        for name in ("batch_size", "micro_batch", "steps", "eval_every", "save_every", "keep",
                     "log_every", "eval_windows", "data_tokens", "memory"):
            value = getattr(self, name)
            self.require(name, value is None or value >= 1 or (name == "steps" and value == 0),
                         "at least 1")
        for name in ("lr", "minutes"):
            value = getattr(self, name)
            self.require(name, value is None or 0 < value < math.inf, "positive")
        for name in ("warmup", "weight_decay", "grad_clip"):
            self.require(name, 0 <= (getattr(self, name) or 0) < math.inf, "0 or more")
        for name in ("beta1", "beta2", "momentum"):
            self.require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self.require("min_lr", 0 <= self.min_lr <= 1, "a share of the peak rate, 0 to 1")
        self.require("micro_batch", (self.micro_batch or 1) <= self.batch_size,
                     f"at most the batch size, {self.batch_size}")
        if self.seq_curriculum is not None:
            first, last = self.seq_curriculum
            self.require("seq_curriculum", 1 <= first <= last, "FIRST:LAST, growing, such as "
                                                               "64:256")

    def require(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {getattr(self, name)} must be {wanted}")

    @property
    def warmup_steps(self) -> int:
        """Updates of linear warm-up: by default 50, or a tenth of a short run."""
        if self.warmup is not None:
            return self.warmup
        return 50 if self.steps is None else min(50, self.steps // 10)

    def for_tokens(self, tokens: int, block_size: int) -> Settings:
        """These settings with the fewest steps that see `tokens` tokens."""
        most = -(-tokens // self.batch_size)
        steps = bisect.bisect_left(range(1, most + 1), tokens, key=lambda steps: replace(
            self, steps=steps).tokens_until(steps, block_size))
        return replace(self, steps=1 + steps)

    def tokens_until(self, step: int, block_size: int) -> int:
        """Tokens that the updates before `step` see."""
        stages = self.stages(block_size)
        ends = [begin for begin, _ in stages[1:]] + [step]
        return self.batch_size * sum((min(end, step) - min(begin, step)) * length for end, (
            begin, length) in zip(ends, stages, strict=True))

    def block_size(self, step: int, block_size: int) -> int:
        """Tokens in a window at this step."""
        return next(length for begin, length in reversed(self.stages(block_size)) if begin <= step)

    def stages(self, block_size: int) -> list[tuple[int, int]]:
        """(first step, tokens in a window from there on): with a curriculum the length doubles, at
        equal distances over the first half of the run, from its first length to its last."""
        if self.seq_curriculum is None or self.steps is None:
            return [(0, block_size)]
        first, last = self.seq_curriculum
        lengths = [first]
        while lengths[-1] < last:
            lengths.append(min(2 * lengths[-1], last))
        apart = max(2 * (len(lengths) - 1), 1)
        return [(-(-stage * max(self.steps, 1) // apart), length)
                for stage, length in enumerate(lengths)]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        unknown = values.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise UserError(f"unknown training settings {', '.join(sorted(unknown))}: the run was "
                            "made by another version of Diptych")
        return cls(**values)
