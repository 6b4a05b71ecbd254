"""How cost grows with the length, for every architecture on each backend.

python bench/scaling.py --out docs
python bench/scaling.py --arch gpt retnet --backend torch --lengths 256 1024 4096
python bench/scaling.py --quick

A training step and a prefill of one window at growing lengths, the same window read anew without a
cache, decoding behind growing contexts, whose state is made up, peak memory, and the exponents
fitted to all of these. Then texts are generated from a cache and without: four, 128 tokens each, as
Toeplitz mixers were published. Each architecture and backend has a process of its own, in turn.
What needs more than --limit or --memory is left out, and said to be. Called again, it goes on where
it stopped: OUT/scaling.json holds what is done with these versions; beside it the page (.md) and
the picture (.png).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import growth
from bench.again import RESULTS, again
from bench.exponents import aims, sheets
from bench.pages import markdown, on_terminal, write_part
from bench.scaling_chart import draw
from specs import UserError, architectures, main_exit, spec_type
from specs.backend import available_backends
from specs.machine import chip
from train.files import write_json
from train.results import resumed

SETTINGS = ("layers", "width", "lengths", "contexts", "fit", "rounds", "tokens", "limit", "memory",
            "generation", "device")
FULL: dict[str, Any] = {"lengths": [2**i for i in range(8, 15)], "layers": 2, "width": 128,
                        "contexts": [2**i for i in range(8, 17)], "fit": 2048, "rounds": 3,
                        "tokens": 1024, "generation": [10, 512, 4096]}
QUICK: dict[str, Any] = {"lengths": [256, 512, 1024], "contexts": [256, 1024, 4096], "layers": 1,
                         "width": 64, "fit": 256, "rounds": 1, "tokens": 32,
                         "generation": [1, 64, 256]}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--arch", nargs="+", default=architectures(), metavar="NAME",
                      help=f"of {', '.join(architectures())} (all)")
    made.add_argument("--backend", nargs="+", choices=available_backends(), metavar="NAME",
                      default=available_backends(), help="mlx, torch (all that are installed)")
    made.add_argument("--device", nargs="+", default=[], metavar="NAME", help="cpu, gpu (MLX), "
                      "cuda, mps (PyTorch): each backend takes the first of these that it knows")
    helps = {"lengths": "tokens of a window that is trained on or read (256 512 … 16384)",
             "contexts": "tokens behind which one more is decoded, powers of two (256 … 65536)",
             "generation": "layers, width and vocabulary of the model that generates (10 512 4096)"}
    for name, text in helps.items():
        made.add_argument(f"--{name}", type=int, nargs="+", metavar="N", help=text)
    helps = {"layers": "of the model", "width": "of the model",
             "fit": "shortest length and context in the fitted exponents", "rounds": "in turn",
             "tokens": "decoded behind each context, a power of two"}
    for name, text in helps.items():
        made.add_argument(f"--{name}", type=int, help=f"{text} ({FULL[name]})")
    made.add_argument("--limit", type=float, default=60, help="seconds that a point may take (60)")
    made.add_argument("--memory", type=float, default=8, help="GB that a point may need (8)")
    made.add_argument("--quick", action="store_true", help="smallest sizes, a minute or two")
    made.add_argument("--out", type=Path, default=RESULTS, help=f"folder ({RESULTS})")
    made.add_argument("--run", nargs=2, metavar=("ARCH", "BACKEND"), help=argparse.SUPPRESS)
    return made


def main() -> None:
    args = parser().parse_args()
    for name, value in {**FULL, **(QUICK if args.quick else {})}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    check(args)
    if args.run:
        json.dump(growth.measure(args, *args.run), sys.stdout)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "scaling.json"
    about = {**{name: getattr(args, name) for name in SETTINGS}, "chip": chip()}
    document = resumed(file, about, "measured", "--out") or {"about": about, "measured": {}}
    fill(document, args, file)
    document["aims"] = [{"aim": aim, "measured": measured, "kept": kept}
                        for aim, measured, kept in aims(document)]
    write_json(file, document)
    write_part(file.with_suffix(".md"), "How cost grows", lines_of(document))
    draw(document, file.with_suffix(".png"))
    console = Console(highlight=False, markup=False)
    for backend in versions_of(document):
        on_terminal(sheets(document, backend), console)
    for aim in document["aims"]:
        console.print(f"{'kept' if aim['kept'] else 'MISSED'}: {aim['aim']}: {aim['measured']}")
    print(file, file.with_suffix(".md"), file.with_suffix(".png"), sep=", ")


def check(args: argparse.Namespace) -> None:
    """Raise `UserError` for sizes that cannot be measured; sort the lengths."""
    for name in ("lengths", "contexts"):
        setattr(args, name, sorted(set(getattr(args, name))))
    for name in ("layers", "width", "fit", "rounds", "tokens", "lengths", "contexts", "generation"):
        value = getattr(args, name)
        if (min(value) if isinstance(value, list) else value) < 1:
            raise UserError(f"--{name} must be at least 1")
    for name, values in (("contexts", args.contexts), ("tokens", [args.tokens])):
        for value in values:
            if value & (value - 1):
                raise UserError(f"--{name} {value} must be a power of two")
    if min(args.contexts) < growth.PROBES[0]:
        raise UserError(f"--contexts {min(args.contexts)} must be at least {growth.PROBES[0]}, "
                        "where states have their shape")
    if len(args.generation) != 3:
        raise UserError("--generation must be three numbers: layers, width, vocabulary")
    if args.limit <= 0 or args.memory <= 0:
        raise UserError("--limit and --memory must be positive")
    for arch in args.arch:
        spec_type(arch)


def fill(document: dict[str, Any], args: argparse.Namespace, file: Path) -> None:
    """Measure what the document lacks or has of other versions, and write it down at once."""
    pairs = [(arch, backend) for arch in args.arch for backend in args.backend]
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn(),
               TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(pairs))
        for arch, backend in pairs:
            place = f"{arch} {backend}"
            progress.update(bar, description=place)
            version = importlib.metadata.version(backend)
            if document["measured"].get(place, {}).get("version") != version:
                document["measured"][place] = {"version": version, **again(arch, backend)}
                write_json(file, document)
            progress.advance(bar)


def lines_of(document: dict[str, Any]) -> list[str]:
    """What the page shows."""
    about = document["about"]
    lines = [f"{about['layers']} layers of {about['width']}, one window, float32; "
             f"{about['chip']}. Medians of {about['rounds']} rounds in turn; exponents are fitted "
             f"from {about['fit']:,} tokens on, over the range in brackets. A point marked *time* "
             f"or *memory* would need more than {about['limit']:g} s for all its calls, or more "
             f"than {about['memory']:g} GB.", ""]
    lines += [f"- {aim['aim']}: {aim['measured']}, **{'kept' if aim['kept'] else 'missed'}**"
              for aim in document["aims"]]
    lines += ["", "![Cost over the length, on log axes](scaling.png)", ""]
    for backend, versions in versions_of(document).items():
        lines += [f"## {backend}", "", ", ".join(f"{k} {v}" for k, v in versions.items()), ""]
        for sheet in sheets(document, backend):
            lines += markdown(sheet)
    return lines


def versions_of(document: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Of each backend that was measured."""
    return {name.split()[1]: found["versions"] for name, found in document["measured"].items()}


if __name__ == "__main__":
    main_exit(main)
