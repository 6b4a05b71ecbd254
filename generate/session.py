"""What is said at the prompt line, and what follows: a text goes on, a command is done.

The prompt line itself is generate/terminal.py; nothing here reads keys.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from generate.sampling import Sampler
from generate.screen import show, side_by_side
from generate.text import Piece, Speed, require_max_tokens
from generate.writer import Writer
from specs.backend import available_backends, load_backend
from specs.base import did_you_mean
from specs.errors import UserError
from train import checkpoint
from train.files import expanded, write_text

COMMANDS = {  # name: (what follows it, what it does)
    "checkpoints": ("", "the steps that /load can take, with their validation loss"),
    "load": ("STEP", "go on with the checkpoint of this step"),
    "params": ("", "the model, where it runs, and what /set can change"),
    "set": ("SETTING VALUE", "change how texts are written: /set temperature 0.7"),
    "backend": ("BACKEND", "the same checkpoint on the other backend, mlx or torch"),
    "compare": ("STEP STEP", "your last prompt with one seed, from two checkpoints side by side"),
    "retry": ("", "your last prompt again, with the next seed"),
    "save": ("FILE", "keep all texts of this session"),
    "help": ("", "this list"),
    "quit": ("", "leave; so do quit, exit and Ctrl-D"),
}
KEYS = """Any other line is continued. Alt-Enter starts a new line, Enter sends; Up brings back
earlier prompts, Tab completes commands. Ctrl-C stops the text being written. A text that begins
with a slash: put a space before it."""


class Session:
    """One model at a time, how its texts are chosen, and what was written so far."""

    def __init__(self, writer: Writer, sampler: Sampler, max_tokens: int = 200,
                 stop: tuple[str, ...] = (), device: str | None = None) -> None:
        self.writer, self.sampler = writer, sampler
        self.max_tokens, self.stop, self.device = max_tokens, stop, device
        self.prompt: str | None = None
        self.written: list[str] = []
        self.saved: set[Path] = set()
        self.screen = Console(highlight=False, soft_wrap=True, markup=False)

    def answer(self, line: str) -> None:
        """Do what a line says. Raises `UserError` for a command that is wrong, and then nothing
        has changed; `EOFError` to leave."""
        word, _, rest = line.strip().partition(" ")
        if line.strip() in ("quit", "exit"):
            raise EOFError
        if re.fullmatch(r"/[a-z]*", word) and not line.startswith(" "):
            self.command(word, rest.strip())
        elif line:
            self.tell(line)

    def command(self, word: str, rest: str) -> None:
        name = word[1:]
        if name not in COMMANDS:
            raise UserError(f"there is no command {word}"
                            + did_you_mean(word, ["/" + name for name in COMMANDS]))
        wanted = COMMANDS[name][0].split()
        arguments = rest.split(None, max(len(wanted) - 1, 0))
        if len(arguments) != len(wanted):
            raise UserError(f"say it as: {' '.join([word, *wanted])}")
        getattr(self, f"do_{name}")(*arguments)

    def completions(self, text: str) -> list[str]:
        """What the last word of `text`, an unfinished line, may become."""
        if not text.startswith("/"):
            return []
        first, *others = text.split(" ")
        known = ["/" + name for name in COMMANDS]
        if others:
            wanted = COMMANDS.get(first[1:], ("", ""))[0].split()[len(others) - 1:]
            known = {"STEP": [str(step) for step in self.writer.run.steps()],
                     "SETTING": [*self.settings()], "BACKEND": available_backends(),
                     }.get(wanted[0] if wanted else "", [])
        return [word for word in known if word.startswith([first, *others][-1])]

    def settings(self) -> dict[str, Any]:
        """What /set changes, by name."""
        return {**asdict(self.sampler), "max_tokens": self.max_tokens,
                "stop": " ".join(map(repr, self.stop)) or "nothing"}

    def tell(self, prompt: str) -> None:
        """Write the text that goes on from a prompt, as it comes."""
        speed, text = Speed(), [""]
        pieces = self.writer.write([prompt], self.sampler, self.max_tokens, self.stop, speed)
        self.prompt = prompt
        show([prompt], _kept(pieces, text))
        self.keep(self.writer.step, text[0])
        self.remark(f"step {self.writer.step}, seed {self.sampler.seed}: {speed}")

    def do_retry(self) -> None:
        prompt = self.last_prompt()
        self.sampler = replace(self.sampler, seed=self.sampler.seed + 1)
        self.tell(prompt)

    def do_compare(self, one: str, other: str) -> None:
        prompt = self.last_prompt()
        writers = [self.at(_step(text)) for text in (one, other)]
        texts = [writer.write([prompt], self.sampler, self.max_tokens, self.stop)
                 for writer in writers]
        for writer, text in zip(writers, side_by_side(
                [f"step {writer.step}" for writer in writers], prompt, texts), strict=True):
            self.keep(writer.step, text)

    def do_checkpoints(self) -> None:
        run = self.writer.run
        best = checkpoint.best_step(run.path)
        for step in run.steps():
            try:
                loss = checkpoint.read_state(checkpoint.folder(run.path, step))["val_loss"]
            except UserError:
                self.screen.print(f"  {step:>8}  damaged")
                continue
            measured = "" if loss is None else f"validation loss {loss:.4f}"
            remarks = ["best"] * (step == best) + ["loaded"] * (step == self.writer.step)
            self.screen.print(f"  {step:>8}  {measured:22}  {', '.join(remarks)}".rstrip())

    def do_load(self, step: str) -> None:
        self.writer = self.at(_step(step))
        self.remark(f"step {self.writer.step} is loaded")

    def do_backend(self, name: str) -> None:
        now = self.writer
        device = self.device if self.device == "cpu" else None  # others are of one backend alone
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # half a framework is none for ever
        try:
            backend = load_backend(name, device)
        finally:
            signal.signal(signal.SIGINT, before)
        self.writer = Writer(now.run, now.run.load(now.step), backend, now.dtype, now.state)
        self.remark(str(self.writer))

    def do_params(self) -> None:
        writer = self.writer
        self.screen.print(f"  {writer}, step {writer.step}: {writer.spec.arch}, "
                          f"{writer.spec.param_count():,} parameters")
        for name, value in self.settings().items():
            self.screen.print(f"  {name:18}  {value}")

    def do_set(self, name: str, value: str) -> None:
        name = name.replace("-", "_")
        known = [*self.settings()]
        if name not in known:
            raise UserError(f"there is no setting {name!r}" + did_you_mean(name, known))
        if name == "stop":
            self.stop = () if value == "nothing" else (value.replace("\\n", "\n"),)
        elif name == "max_tokens":
            number = _number(name, value, int)
            require_max_tokens(number)
            self.max_tokens = number
        else:
            kind = type(getattr(self.sampler, name))
            self.sampler = replace(self.sampler, **{name: _number(name, value, kind)})
        self.remark(f"{name} {self.settings()[name]}")

    def do_save(self, file: str) -> None:
        path = expanded(file)
        if not self.written:
            raise UserError("nothing was written yet: type a prompt first")
        if path.exists() and path.resolve() not in self.saved:
            raise UserError(f"{file} exists: choose another name")
        write_text(path, "\n\n".join(self.written) + "\n")
        self.saved.add(path.resolve())
        self.remark(f"{file}: {len(self.written)} texts")

    def do_help(self) -> None:
        for name, (arguments, help) in COMMANDS.items():
            self.screen.print(f"  {f'/{name} {arguments}':20}  {help}")
        self.screen.print(KEYS)

    def do_quit(self) -> None:
        raise EOFError

    def at(self, step: int) -> Writer:
        """The model at this step, as it is where it is loaded."""
        now = self.writer
        return now if step == now.step else Writer(now.run, now.run.load(step), now.backend,
                                                   now.dtype, now.state)

    def last_prompt(self) -> str:
        if self.prompt is None:
            raise UserError("there is no prompt yet: type one first")
        return self.prompt

    def keep(self, step: int, text: str) -> None:
        """Remember a text for /save, with what it takes to get it again."""
        chosen = ", ".join(f"{name} {value}" for name, value in self.settings().items())
        self.written.append(f"# {self.writer.run.name}, step {step}, {chosen}\n"
                            f"{self.prompt}{text}")

    def remark(self, text: str) -> None:
        self.screen.print(text, style="dim")


def _kept(pieces: Iterator[Piece], text: list[str]) -> Iterator[Piece]:
    """`pieces`, each added to the text of its row on its way."""
    for piece in pieces:
        text[piece.row] += piece.text
        yield piece


def _step(text: str) -> int:
    return _number("STEP", text, int)


def _number(name: str, text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} {text!r} must be {wanted}") from None
