"""A model and how it is trained, in words that train/run.py understands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from specs import Spec, spec_type
from train.settings import Settings


@dataclass(frozen=True)
class Setup:
    """`fields` of the spec, block_size among them, beside those of its preset; `settings` of
    train/run.py, batch_size among them; `rates`: peak learning rates to be tried, none where it is
    measured and not trained; the setups of a `group` are given equal time; `faults`
    (train/study/faults.py) are planted in its trainings; `share`: of the tokens, and of the time,
    that the others have."""

    arch: str
    fields: dict[str, Any]
    settings: dict[str, Any]
    preset: str = "demo"
    rates: tuple[float, ...] = ()
    group: str = ""
    faults: tuple[str, ...] = ()
    share: float = 1.0

    @property
    def tokens(self) -> int:
        """Of one update."""
        return self.settings["batch_size"] * self.fields["block_size"]

    def updates(self, tokens: float) -> int:
        """Those that see about its share of so many tokens."""
        tokens *= self.share
        if "seq_curriculum" not in self.settings:
            return max(1, round(tokens / self.tokens))
        first, _, last = self.settings["seq_curriculum"].partition(":")
        found = Settings(batch_size=self.settings["batch_size"],
                         seq_curriculum=(int(first), int(last)))
        return found.for_tokens(round(tokens), self.fields["block_size"]).steps or 1

    def spec(self, vocab_size: int) -> Spec:
        return spec_type(self.arch).preset(self.preset, **{"vocab_size": vocab_size, **self.fields})

    def arguments(self) -> list[str]:
        """For train/run.py."""
        words = ["--arch", self.arch, "--preset", self.preset]
        for name, value in self.fields.items():
            words += ["--set", f"{name}={json.dumps(value)}"]
        return words + options(self.settings)


def options(settings: dict[str, Any]) -> list[str]:
    """The command-line words of settings."""
    words = []
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        words += [option] if value is True else [option, str(value)]
    return words
