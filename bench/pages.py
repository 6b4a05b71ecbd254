"""What benchmarks that go on where they stopped share: the file that holds what is done; tables on
the terminal, and in a page of which the benchmark owns a part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from specs import UserError
from train.files import write_text

Sheet = tuple[str, list[str], list[list[str]]]  # title, headings, rows
BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"


def resumed(file: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The document in `file`, or a new one. Raises `UserError` if it was measured otherwise."""
    if not file.exists():
        return {"about": about, "measured": {}}
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    other = [name for name, value in about.items() if document["about"].get(name) != value]
    if other:
        raise UserError(f"{file} was measured with another {', '.join(other)}: choose another "
                        "--out, or delete it")
    return document


def markdown(sheet: Sheet) -> list[str]:
    """Lines of a page."""
    title, headings, rows = sheet
    table = [headings, ["---"] * len(headings), *rows]
    return [f"**{title}**", "", *(f"| {' | '.join(row)} |" for row in table), ""]


def on_terminal(sheets: list[Sheet], console: Console) -> None:
    if not console.is_terminal:
        console.width = 160
    for title, headings, rows in sheets:
        table = Table(title=title, title_justify="left", box=None)
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table, "")


def write_part(path: Path, title: str, lines: list[str]) -> None:
    """Put `lines` in the place of what stands between the marks of the page at `path`, or at the
    end of one that has none; a new page begins with `title`."""
    old = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n\n"
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2] or "\n"
    write_text(path, before + "\n".join([BEGIN, "", *lines, "", END]) + after)
