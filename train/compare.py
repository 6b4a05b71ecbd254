"""Any runs on top of each other: `python train/compare.py --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specs import UserError, main_exit
from train import overlay, page, plots
from train.curves import AXES, COLUMNS, History, cells, measure, read_history, remarks
from train.files import write_bytes, write_text

EXAMPLES = """examples:
  python train/compare.py bdh-demo gpt-demo
  python train/compare.py runs/gpt-* --against FLOPs --smooth 0.9
  python train/compare.py bdh-demo gpt-demo --html comparison.html

Tokens and FLOPs are counted, not measured: the FLOPs of a step are three forward passes' worth,
by the spec's own count, whatever is computed again to save memory. Time is the training's own,
validation included, of all its sittings together. The training loss is smoothed, the validation
loss never is.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="train/compare.py", epilog=EXAMPLES, allow_abbrev=False,
        description="Compare runs: a table, and their losses against steps, tokens, time and "
        "FLOPs.", formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("runs", nargs="+", metavar="RUN", help="a folder under runs/, or its path")
    made.add_argument("--against", choices=AXES, default="steps",
                      help="what the picture on the terminal has below (%(default)s)")
    made.add_argument("--smooth", type=float, default=0.6, metavar="S",
                      help="how much of its past each point of the training loss keeps, from 0 "
                      "(as measured) to below 1 (%(default)s)")
    made.add_argument("--out", type=Path, default=Path("runs/compare.png"), metavar="FILE",
                      help="the picture: .png, .svg or .pdf (%(default)s)")
    made.add_argument("--html", type=Path, metavar="FILE",
                      help="table and pictures as one page that needs nothing else")
    return made


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if not 0 <= args.smooth < 1:
        raise UserError(f"--smooth {args.smooth} must be from 0 (as measured) to below 1")
    for option, file, endings in (("--out", args.out, (".png", ".svg", ".pdf")),
                                  ("--html", args.html, (".html", ".htm"))):
        if file and file.suffix not in endings:
            raise UserError(f"{option} {file} must end in {' or '.join(endings)}")
    histories = list({each.name: each for each in map(read_history, args.runs)}.values())
    show(histories, args.against, args.smooth)
    files = [file for file in (args.out, args.html) if file]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(args.out, overlay.picture(histories, args.smooth, args.out.suffix[1:]))
    if args.html:
        write_text(args.html, page.html(histories, args.smooth))
    print(*files, sep=", ")
    return 0


def show(histories: list[History], against: str, smooth: float) -> None:
    """The table and one picture, on the terminal."""
    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 1, 0, 0))
    for number, name in enumerate(COLUMNS):
        table.add_column(name, no_wrap=number == 0, justify="left" if number < 2 else "right")
    for history in histories:
        table.add_row(*map(escape, cells(history, histories, smooth)))
    console.print(table)
    for remark in remarks(histories):
        console.print(remark)
    (training, validation), unit = measure(histories)
    curves = [(history.name, history.curve(validation, against)) for history in histories]
    what = "validation"
    if not all(len(curve.y) for _, curve in curves):
        what = "training"
        curves = [(history.name, history.curve(training, against).smoothed(smooth))
                  for history in histories]
    plots.characters([(name, curve.x.tolist(), curve.y.tolist()) for name, curve in curves],
                     f"{what} loss, {unit}, against {against}")


if __name__ == "__main__":
    main_exit(main)
