"""Whether a model trains in half precision: loss, updates left out, speed and memory.

python bench/precision.py --arch bdh
python bench/precision.py --arch bdh --preset 25m --batch 8 --seq 256 --backend torch

The same weights and batches in float32, bfloat16 and float16 (with loss scaling), each time with
every value of --vary; every training in a process of its own. Loss: of the last ten steps.
Many CPUs emulate half precision and are slower with it: the speed is that of this machine alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.again import RESULTS, again
from specs import init_weights, main_exit, spec_type
from specs.backend import Dtype, OptimizerSettings, available_backends, load_backend
from specs.base import parse_field
from specs.machine import chip
from train import batches
from train.data import prepare
from train.files import write_json
from train.settings import Settings
from train.study.probe import held_by_frameworks

DTYPES = ("float32", "bfloat16", "float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="bdh")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--vary", nargs="+", metavar="FIELD=VALUE", default=[
        "score_scale=none", "score_scale=sqrt", "score_scale=linear"])
    parser.add_argument("--backend", nargs="+", default=available_backends(), metavar="NAME")
    parser.add_argument("--dtype", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seq", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--run", nargs=3, metavar=("BACKEND", "DTYPE", "FIELD=VALUE"),
                        help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        json.dump(measure(args, *args.run), sys.stdout)
        return
    table = Table("backend", "", "dtype", box=None, title=chip())
    for title in ("loss", "left out", "loss scale", "tokens/s", "MB of training"):
        table.add_column(title, justify="right")
    rows = []
    for backend, vary, dtype in itertools.product(args.backend, args.vary, args.dtype):
        row = again(backend, dtype, vary)
        rows.append({"backend": backend, "vary": vary, "dtype": dtype, **row})
        table.add_row(backend, vary, dtype, f"{row['loss']:.3f}", str(row["left_out"]),
                      f"{row['loss_scale']:,.0f}", f"{row['rate']:,.0f}",
                      f"{row['memory'] / 1e6:,.0f}")
        print(*rows[-1].values(), file=sys.stderr)
    Console(highlight=False).print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "precision.json", {"chip": chip(), "rows": rows})


def measure(args: argparse.Namespace, name: str, dtype: Dtype, vary: str) -> dict[str, Any]:
    """Train for `--steps` and report; a step whose loss is not finite is left out and counted."""
    backend = load_backend(name)
    field, value = parse_field(vary)
    corpus, tokenizer = prepare("builtin", "bytes")
    spec = spec_type(args.arch).preset(args.preset, **{
        field: value, "block_size": args.seq, "vocab_size": tokenizer.vocab_size})
    before = held_by_frameworks(backend, spec, Settings(batch_size=1))
    model = backend.build(spec, init_weights(spec), dtype)
    trainer = backend.trainer(model, OptimizerSettings())
    losses, seconds = [], []
    for step in range(args.steps):
        batch = batches.batch(corpus, 0, step, args.batch, args.seq)
        start = time.perf_counter()
        trainer.step([batch], args.lr * min(1, (step + 1) / 10))
        progress = trainer.read()
        seconds.append(time.perf_counter() - start)
        losses += progress.losses
    made = int(trainer.state()["step"])
    return {"loss": mean(losses[-10:]), "left_out": args.steps - made,
            "loss_scale": progress.loss_scale, "memory": backend.peak_memory() - before,
            "rate": args.batch * args.seq / median(seconds)}


if __name__ == "__main__":
    main_exit(main)
