"""A run directory, runs/NAME: made by `train/run.py`, read by generate, parity and bench.

    config.json     arch, spec, training settings, versions, corpus, git commit
    tokenizer.json  corpus/ (when small)  metrics.jsonl  plots/  step-00001000/
    origin/         of an adopted run: what its folder held besides weights and tokenizer

Runs that belong together lie in a folder, and have names such as GROUP/NAME.
"""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specs import Spec, UserError, spec_type
from specs.backend import Arrays
from specs.base import did_you_mean
from train import checkpoint
from train.files import new_folder, write_json, write_text
from train.settings import Settings
from train.tokenizer import Tokenizer

FORMAT = 1
RUNS = Path("runs")
NAME = r"[^\W_][\w.-]{0,99}"  # of a run, or of a group of them; matplotlib hides "_…"


class RunDir:
    """One run. Raises `UserError` where a file is missing, damaged or of another version."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.plots = path / "plots"
        self.origin = path / "origin"

    @property
    def name(self) -> str:
        """What `open` finds this run by: its name under runs/, elsewhere its path."""
        path, runs = self.path.resolve(), RUNS.resolve()
        inside = runs in (path.parent, path.parent.parent)
        return str(path.relative_to(runs)) if inside else str(self.path)

    @classmethod
    def open(cls, name: str | Path) -> RunDir:
        """The run of this name under runs/, or at this path."""
        for path in (Path(name).resolve(), RUNS / name):
            if (path / "config.json").is_file():
                return cls(path)
        known = sorted(str(path.parent.relative_to(RUNS)) for pattern in ("[!.]*", "[!.]*/[!.]*")
                       for path in RUNS.glob(f"{pattern}/config.json"))
        hint = did_you_mean(str(name), known) if known else (
            "; train one first: python train/run.py --arch bdh")
        raise UserError(f"no run {str(name)!r}" + hint.replace("It has:", "There are:"))

    @classmethod
    def create(cls, name: str | None, spec: Spec, settings: Settings, preset: str,
               tokenizer: Tokenizer, corpus: dict[str, Any], versions: dict[str, str],
               fill: Callable[[Path], None]) -> RunDir:
        """A new run directory; `name` None: named after the architecture and preset, and numbered.

        `fill` writes the rest of it; the run exists when that has ended well, or not at all.
        """
        require_new(name)
        path = RUNS / (name or free_name(f"{spec.arch}-{preset}"))
        try:
            with new_folder(path) as aside:
                write_text(aside / "tokenizer.json", tokenizer.to_json())
                write_json(aside / "config.json", {
                    "format": FORMAT, "id": uuid.uuid4().hex, "arch": spec.arch, "preset": preset,
                    "spec": spec.to_dict(), "settings": settings.to_dict(), "corpus": corpus,
                    "versions": versions, "commit": _git_commit(),
                    "created": time.strftime("%Y-%m-%d %H:%M:%S")})
                fill(aside)
        except FileExistsError:
            if name is None:  # taken by a run that began meanwhile
                return cls.create(name, spec, settings, preset, tokenizer, corpus, versions, fill)
            raise taken(path) from None
        return cls(path)

    @property
    def config(self) -> dict[str, Any]:
        file = self.path / "config.json"
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{file} is damaged: it is not JSON") from None
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise UserError(f"{file} is not of format {FORMAT}, which this version reads: it is "
                            "damaged, or was made by another version of Diptych")
        for key, kind in (("arch", str), ("preset", str), ("spec", dict), ("settings", dict),
                          ("corpus", dict)):
            if not isinstance(config.get(key), kind):
                raise UserError(f"{file} is damaged: it lacks {key!r}")
        return config

    @property
    def spec(self) -> Spec:
        return spec_type(self.config["arch"]).from_dict(self.config["spec"])

    @property
    def settings(self) -> Settings:
        return Settings.from_dict(self.config["settings"])

    def set_settings(self, settings: Settings) -> None:
        """What was changed on resuming is written down."""
        write_json(self.path / "config.json", {**self.config, "settings": settings.to_dict()})

    def tokenizer(self) -> Tokenizer:
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"{file} is missing")
        try:
            tokenizer = Tokenizer.from_json(file.read_text(encoding="utf-8", errors="replace"))
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        if tokenizer.vocab_size > self.spec.vocab_size:  # MLX would read beyond its embedding
            raise UserError(f"{file} is another model's: it has {tokenizer.vocab_size} tokens, "
                            f"this model knows {self.spec.vocab_size}")
        return tokenizer

    def steps(self) -> list[int]:
        """Steps of the checkpoints, in order."""
        return checkpoint.steps(self.path)

    def weights(self, step: int | None = None) -> Arrays:
        """Weights at `step`, or of the last whole checkpoint; checked against their sha256."""
        return self.load(step)[1]

    def load(self, step: int | None = None) -> tuple[int, Arrays]:
        """(step, its weights) of the checkpoint at `step`, or of the last whole one."""
        if step is None:
            state, (weights,), remarks = checkpoint.load_last(self.path, checkpoint.FILES[:1])
            for remark in remarks:
                print(f"{remark}, step {state.step}", file=sys.stderr)
            return state.step, weights
        if step not in self.steps():
            raise UserError(f"{self.name} has no checkpoint at step {step}; it has: "
                            + (", ".join(map(str, self.steps())) or "none"))
        path = checkpoint.folder(self.path, step)
        return step, checkpoint.load(path, checkpoint.FILES[:1])[1][0]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process from training this run meanwhile; a kill frees it as well."""
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another process is training {self.name}: wait for it, or stop "
                                "it first") from None
            yield


def require_new(name: str | None) -> None:
    """Raises `UserError` for what no new run may be called; None: it names itself."""
    if name is None:
        return
    if not re.fullmatch(f"({NAME}/)?{NAME}", name):
        raise UserError(f"--name {name!r} must be at most 100 letters, digits, '-', '_' and '.', "
                        "and begin with a letter or digit; GROUP/NAME for one of many")
    if (RUNS / name / "config.json").exists():
        raise taken(RUNS / name)


def taken(path: Path) -> UserError:
    return UserError(f"{path} exists: go on with it by --resume {RunDir(path).name}, or choose "
                     "another --name")


def free_name(base: str) -> str:
    number = 1
    while (RUNS / (name := base if number == 1 else f"{base}-{number}")).exists():
        number += 1
    return name


def _git_commit() -> str | None:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None
