"""Many prompts, a file of results: one JSON line a prompt, in the order of the prompts.

A line holds the prompt, the text, why it ended, and all that it takes to get it again. The file
grows by a batch at a time; the same command goes on where the file ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from generate.sampling import Sampler
from generate.text import START, encoded
from generate.writer import Writer
from specs.errors import UserError
from train import metrics
from train.files import require_file, write_text
from train.numerals import duration

_BEGIN = b'{"prompt": '


def read_prompts(file: Path) -> list[str]:
    """The prompts in a file: its lines, without the empty ones; of a .jsonl file each line's
    "prompt", or the line itself where it is a string. Raises `UserError` if there is none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # others may stand in a prompt
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"there is no file {file}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text") from None
    prompts = [_prompt(file, number, line) if file.suffix == ".jsonl" else line
               for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UserError(f"{file} holds no prompt: write one a line")
    return prompts


def _prompt(file: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise UserError(f'{file} line {number} must be {{"prompt": "TEXT"}} or "TEXT"')
    return prompt


def write_all(writer: Writer, prompts: Sequence[str], out: Path, sampler: Sampler,
              max_tokens: int, stop: Sequence[str], batch_size: int) -> int:
    """Continue every prompt, `batch_size` of them at once, into `out`; how many of the texts
    are new.

    Raises `UserError` where `out` holds anything but the beginning of just this, and for a prompt
    that cannot be read, before the first text.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} must be at least 1")
    for number, prompt in enumerate(prompts, 1):
        try:
            encoded(writer.tokenizer, prompt or START, writer.spec.max_length)
        except UserError as error:
            raise UserError(f"prompt {number}: {error}") from None
    how = {"run": writer.run.name, "step": writer.step, "dtype": writer.dtype, **asdict(sampler),
           "max_tokens": max_tokens, "stop": list(stop)}
    done = _done(out, prompts, how)
    with _Bar(len(prompts), done, max_tokens) as bar:
        for first in range(done, len(prompts), batch_size):
            batch = prompts[first:first + batch_size]
            for row in _texts(writer, batch, sampler, max_tokens, stop, bar):
                metrics.append(out, {**row, **how})
            bar.say()
    return len(prompts) - done


def _texts(writer: Writer, prompts: Sequence[str], sampler: Sampler, max_tokens: int,
           stop: Sequence[str], bar: _Bar) -> list[dict[str, Any]]:
    rows = [{"prompt": prompt, "text": "", "finish": "", "tokens": 0} for prompt in prompts]
    for piece in writer.write(prompts, sampler, max_tokens, stop):
        row: dict[str, Any] = rows[piece.row]
        row["text"] += piece.text
        row["finish"] = piece.finish
        row["tokens"] += 1
        bar.token(row["tokens"], piece.finish is not None)
    return rows


def _done(out: Path, prompts: Sequence[str], how: dict[str, Any]) -> int:
    """How many results `out` holds; half a line, as a kill leaves it, is cut off."""
    require_file(out, "--out")
    if not out.exists():
        return 0
    rows = metrics.read(out)
    lines, _, half = out.read_bytes().rpartition(b"\n")
    if len(rows) < lines.count(b"\n") + bool(lines) or not half.startswith(_BEGIN[:len(half)]):
        raise UserError(f"{out} holds something else than results: choose another --out")
    for number, row in enumerate(rows, 1):
        wanted = {"prompt": prompts[number - 1] if number <= len(prompts) else None, **how}
        other = [name for name, value in wanted.items() if row.get(name) != value]
        if other:
            raise UserError(f"{out} holds other results, line {number} with another {other[0]}: "
                            "choose another --out, or remove it")
    write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


class _Bar:
    """How far it has got, in tokens: a bar on a terminal, else a line for each batch."""

    def __init__(self, prompts: int, done: int, max_tokens: int) -> None:
        console = Console(stderr=True)
        self.live, self.max_tokens, self.tokens = console.is_terminal, max_tokens, 0
        self.bar = Progress(
            BarColumn(bar_width=30), TextColumn("{task.fields[texts]}/{task.fields[all]} texts"),
            TextColumn("{task.fields[rate]}"), TextColumn("ETA"),
            TimeRemainingColumn(compact=True), console=console, disable=not self.live)
        self.task = self.bar.add_task("write", total=prompts * max_tokens, texts=done, all=prompts,
                                      rate="", completed=done * max_tokens)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def token(self, length: int, last: bool) -> None:
        """One more token, of a text that now has `length` of them."""
        self.tokens += 1
        task = self.bar.tasks[0]
        rate = self.tokens / max(task.elapsed or 0, 1e-9)
        self.bar.update(self.task, advance=1 + last * (self.max_tokens - length),
                        texts=task.fields["texts"] + last, rate=f"{rate:,.0f} tokens/s")

    def say(self) -> None:
        if not self.live:
            task = self.bar.tasks[0]
            print(f"{task.fields['texts']}/{task.fields['all']} texts  {task.fields['rate']}  "
                  f"ETA {duration(task.time_remaining or 0)}", file=sys.stderr, flush=True)
