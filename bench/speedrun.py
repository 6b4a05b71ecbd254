"""How soon a small GPT writes like Shakespeare: nanoGPT's CPU recipe, and ours.

python bench/speedrun.py --data tinyshakespeare.txt
python bench/speedrun.py --data tinyshakespeare.txt --times 1 3 10 --who torch

The recipe (github.com/karpathy/nanoGPT, README, "I only have a macbook") is 4 layers of 128, 12
windows of 64 characters, 2,000 steps of AdamW, and reaches a validation loss of 1.88. It is run on
PyTorch first; then our preset "shakespeare" on each backend, until it is as good; then, with
--times, the best that we know to buy with so many times the recipe's time. Time is that of
training alone; losses are of the whole held-out tenth, in nats a character. Every contestant is a
run of train/run.py (runs/speedrun-...); runs/bench/speedrun.json has the figures.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.again import RESULTS
from specs import UserError, main_exit
from specs.backend import available_backends
from specs.machine import chip
from train import metrics
from train.files import write_json
from train.rundir import RUNS

TRAIN = Path(__file__).parent.parent / "train" / "run.py"
RECIPE = ["--preset", "nanogpt-cpu", "--steps", "2000", "--batch-size", "12", "--lr", "1e-3",
          "--beta2", "0.99", "--warmup", "100"]
MUON = ["--preset", "shakespeare", "--optimizer", "muon", "--lr", "0.02"]
# MLX's CPU has more to do beside the products of a step: fewer and larger ones suit it.
OURS = {"torch": [*MUON, "--steps", "200", "--batch-size", "20", "--momentum", "0.8",
                  "--schedule", "wsd", "--warmup", "10"],
        "mlx": [*MUON, "--steps", "145", "--batch-size", "32", "--momentum", "0.85",
                "--schedule", "wsd", "--warmup", "10"]}
LONGER = {1: ["--set", "n_layer=4", "--block-size", "128"],
          3: ["--set", "n_layer=4", "--set", "n_embd=192", "--block-size", "128"],
          10: ["--set", "n_layer=6", "--set", "n_embd=192", "--set", "dropout=0.1",
               "--block-size", "256"]}


def main() -> None:
    here = available_backends()
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a text, such as tinyshakespeare.txt")
    parser.add_argument("--who", nargs="+", choices=here, default=here, metavar="BACKEND",
                        help=f"of ours, of {', '.join(here)} (all)")
    parser.add_argument("--times", nargs="+", type=int, choices=LONGER, default=[], metavar="N",
                        help="also what N times the recipe's time buys, 1, 3 or 10")
    parser.add_argument("--steps", type=int, help="of each training with --steps, to try it out")
    args = parser.parse_args()
    if "torch" not in here:
        raise UserError("the recipe is run on PyTorch: pip install -e '.[torch]'")
    found = {"recipe, torch": trained("recipe", "torch", args, RECIPE)}
    for backend in args.who:
        found[f"ours, {backend}"] = trained("ours", backend, args, OURS[backend])
    minutes = found["recipe, torch"]["seconds"] / 60
    for times in args.times:
        for backend in args.who:
            found[f"{times} × its time, {backend}"] = trained(
                f"{times}x", backend, args, [*MUON, *LONGER[times], "--batch-size", "16",
                                             "--minutes", f"{times * minutes:.4f}"])
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "speedrun.json", {"chip": chip(), "data": args.data, "found": found})
    show(found)


def trained(name: str, backend: str, args: argparse.Namespace, options: list[str],
            ) -> dict[str, Any]:
    """Seconds of training and held-out loss at the end of a run with these options of ours."""
    name = f"speedrun-{name}-{backend}"
    shutil.rmtree(RUNS / name, ignore_errors=True)
    never = str(10**6)
    options = ["--arch", "gpt", "--backend", backend, "--name", name, "--data", args.data, *options,
               "--eval-every", never, "--eval-windows", never, "--save-every", never]
    if args.steps and "--steps" in options:
        options += ["--steps", str(args.steps)]
    if subprocess.run([sys.executable, TRAIN, *options]).returncode:
        raise UserError(f"{name} failed: see above")
    rows = metrics.read(RUNS / name / "metrics.jsonl")
    return {"seconds": [row["elapsed"] for row in rows if "loss" in row][-1],
            "loss": [row["val_loss"] for row in rows if "val_loss" in row][-1],
            "options": options}


def show(found: dict[str, dict[str, Any]]) -> None:
    table = Table("", "seconds", "of the recipe's", "held-out loss", box=None)
    recipe = found["recipe, torch"]["seconds"]
    for who, figures in found.items():
        table.add_row(who, f"{figures['seconds']:.1f}", f"{figures['seconds'] / recipe:.2f}",
                      f"{figures['loss']:.4f}")
    Console().print(table)
    print(RESULTS / "speedrun.json")


if __name__ == "__main__":
    main_exit(main)
