"""Texts on a terminal, as they grow: one after the other, or side by side."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from generate.text import Piece

# What a terminal would obey is shown: C0 and DEL by their pictures, C1 as what is no text.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}


def show(prompts: Sequence[str], pieces: Iterator[Piece]) -> bool:
    """Print each prompt with its text: the first as it grows, the next from where it has got to.

    Ctrl-C ends all of them where they are; then the answer is False.
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    screen = Console(highlight=False)
    waiting: list[deque[Piece]] = [deque() for _ in prompts]
    finished = True
    for row, prompt in enumerate(prompts):
        screen.out("\n" * (row > 0) + prompt, style="bold", end="", highlight=False)
        finish = None
        try:
            while not finish:
                if waiting[row]:
                    text, finish = waiting[row][0].text, waiting[row].popleft().finish
                    sys.stdout.write(text.translate(_VISIBLE) if screen.is_terminal else text)
                    sys.stdout.flush()
                    continue
                piece = next(pieces, None)
                if piece is None:
                    break
                waiting[piece.row].append(piece)
        except KeyboardInterrupt:  # while a token is computed, or while it is shown
            pieces, finished = iter(()), False
        print()
    return finished


def side_by_side(titles: Sequence[str], prompt: str, texts: Sequence[Iterable[Piece]],
                 ) -> list[str]:
    """Print one prompt with several texts, a column each, as they grow in turn; the texts.

    Ctrl-C ends all of them where they are.
    """
    written = [""] * len(titles)

    def columns() -> Table:
        table = Table(expand=True)
        for title in titles:
            table.add_column(title, overflow="fold", ratio=1)
        table.add_row(*(Text(prompt.translate(_VISIBLE), "bold").append(
            text.translate(_VISIBLE), "not bold") for text in written))
        return table

    growing = {column: iter(pieces) for column, pieces in enumerate(texts)}
    with Live(columns(), console=Console(highlight=False), refresh_per_second=10) as live:
        try:
            while growing:
                for column, pieces in list(growing.items()):
                    piece = next(pieces, None)
                    if piece is None:
                        del growing[column]
                    else:
                        written[column] += piece.text
                live.update(columns())
        except KeyboardInterrupt:
            live.update(columns())
    return written
