"""Tables on the terminal, and in a page of which the benchmark owns a part."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from train.files import write_text

Sheet = tuple[str, list[str], list[list[str]]]  # title, headings, rows
BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"


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
