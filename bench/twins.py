"""How alike the twins are: the share of identical lines and the length of each pair of files.

python bench/twins.py
"""

from __future__ import annotations

import difflib
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PANELS = ("mlx_models", "torch_models")


def pairs() -> list[tuple[Path, Path]]:
    """The files that both panels have: (MLX, PyTorch)."""
    mlx, torch = ({path.name for path in (ROOT / panel).glob("[a-z]*.py")} for panel in PANELS)
    return [(ROOT / PANELS[0] / name, ROOT / PANELS[1] / name) for name in sorted(mlx & torch)]


def lines(path: Path) -> list[str]:
    """The lines of a file, without indentation and empty ones."""
    stripped = map(str.strip, path.read_text(encoding="utf-8").splitlines())
    return [line for line in stripped if line]


def similarity(one: list[str], two: list[str]) -> float:
    """Twice the lines that both have in the same order, over the lines of both: 0 to 1."""
    return difflib.SequenceMatcher(None, one, two, autojunk=False).ratio()


def main() -> None:
    table = Table("file", *(f"{panel} lines" for panel in PANELS), "identical", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for paths in pairs():
        one, two = map(lines, paths)
        lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]
        table.add_row(paths[0].name, *map(str, lengths), f"{similarity(one, two):.1%}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
