"""Our two panels against transformers and mlx_lm: the same model, trained, read and decoded.

python bench/neighbours.py
python bench/neighbours.py --arch mamba2 --seq 512
python bench/neighbours.py --set n_layer=4 --batch 4

Each contestant runs in a process of its own, in turn, several rounds; medians, and how each stands
to the neighbour of its framework: "torch" to "transformers", "mlx" to "mlx_lm"; "-compiled" where
the framework compiles the step. The neighbour loads what `train/export.py` would write. The bound
is the matrix-product rate (training) and the bandwidth (decoding) measured in the same process.
Reading is the time to the first token after a prompt of a window's length.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.again import RESULTS, again
from specs import init_weights, main_exit, spec_type
from specs.backend import Batch, OptimizerSettings, available_backends, load_backend
from specs.base import Spec, parse_field
from specs.machine import chip, process_peak
from train.checkpoint import save_arrays
from train.files import write_json
from train.neighbours import neighbour

NEIGHBOURS = {"torch": "transformers", "mlx": "mlx_lm"}
PROMPT, DECODED = 64, 64  # tokens read before decoding, tokens timed
# The sizes at which the README's figures were taken: a vocabulary of bytes, one window's length.
FORMS: dict[str, Mapping[str, Any]] = {
    "gpt": {"vocab_size": 256, "block_size": 1024, "n_layer": 6, "n_embd": 384, "n_head": 6,
            "norm": "rmsnorm", "pos": "rope", "mlp": "swiglu", "d_ff": 1024},
    "moe": spec_type("moe").presets["mixtral"],
    "mla": spec_type("mla").presets["deepseek-v2"],
    "mamba2": {"n_layer": 4},
    "rwkv7": {"n_layer": 4, "n_embd": 256},
}
BATCHES = {"gpt": 8, "moe": 4, "mla": 4, "mamba2": 2, "rwkv7": 2}
LACKS = {"rwkv7": "transformers"}
KINDS = "train", "read", "decode"


def main() -> None:
    who = [f"{name}{form}" for panel in available_backends()
           for name in (panel, NEIGHBOURS[panel]) for form in ("", "-compiled")]
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=sorted(FORMS), default="gpt")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", dest="fields",
                        help="change the model from the one of the README's figures")
    parser.add_argument("--who", nargs="+", choices=who, metavar="NAME",
                        help=f"of {', '.join(who)} (all that have the architecture)")
    parser.add_argument("--batch", type=int, help="windows per training step "
                        f"({', '.join(f'{arch} {batch}' for arch, batch in BATCHES.items())})")
    parser.add_argument("--seq", type=int, default=256, help="tokens per window (256)")
    parser.add_argument("--steps", type=int, default=5, help="timed, after two that are not (5)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch = args.batch or BATCHES[args.arch]
    args.who = args.who or [name for name in who if name.split("-")[0] != LACKS.get(args.arch)]
    spec = spec_type(args.arch).from_dict(
        {**FORMS[args.arch], **dict(map(parse_field, args.fields))})
    if args.run:
        print(json.dumps(measure(args, spec)))
        return
    rows = []
    for _ in range(args.rounds):
        for name in args.who:
            rows.append({"who": name, **again(name)})
            print(f"{name}: {rows[-1]['train']:.0f} tokens/s in training, "
                  f"{rows[-1]['read']:.0f} read, {rows[-1]['decode']:.0f} decoded")
    show(args, spec, rows)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"neighbours-{args.arch}.json",
               {"chip": chip(), "spec": spec.to_dict(), "batch": args.batch, "seq": args.seq,
                "rows": rows})


def measure(args: argparse.Namespace, spec: Spec) -> dict[str, float]:
    """Tokens/s of one contestant in each of `KINDS`, shares of the bound, peak bytes."""
    name, _, compiled = args.run.partition("-")
    panel = next(own for own, other in NEIGHBOURS.items() if name in (own, other))
    backend = load_backend(panel)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, spec.vocab_size, (args.batch, args.seq + 1)).astype(np.int32)
    step, decode = contestant(name == panel, panel, spec, bool(compiled))
    seconds = []
    for _ in range(2 + args.steps):
        start = time.perf_counter()
        step(rows[:, :-1], rows[:, 1:])
        seconds.append(time.perf_counter() - start)
    train, peak = rows[:, 1:].size / median(seconds[2:]), process_peak()
    seconds = []
    for _ in range(1 + args.steps):
        start = time.perf_counter()
        next(decode(rows[:1, :-1]))
        seconds.append(time.perf_counter() - start)
    read = args.seq / median(seconds[1:])
    tokens, start = decode(rows[:1, :PROMPT]), 0.0
    for _ in islice(tokens, 8):
        start = time.perf_counter()
    for _ in islice(tokens, DECODED):
        last = time.perf_counter()
    rate = DECODED / (last - start)
    flops = spec.flops_per_token(args.seq) / backend.matmul_rate()
    return {"train": train, "read": read, "decode": rate, "peak": peak,
            "train_share": train * 3 * flops, "read_share": read * flops,
            "decode_share": rate * spec.decode_traffic(PROMPT) / backend.bandwidth()}


def contestant(own: bool, panel: str, spec: Spec, compiled: bool) -> tuple[
        Callable[[np.ndarray, np.ndarray], object], Callable[[np.ndarray], Iterator[int]]]:
    """What trains one step, and what decodes greedily."""
    weights = init_weights(spec)
    if not own:
        with tempfile.TemporaryDirectory() as folder:
            to = {"torch": "hf", "mlx": "mlx-lm"}[panel]
            content = neighbour(spec.arch).to_upstream(spec, weights, to)
            save_arrays(Path(folder) / "model.safetensors", content.tensors, "pt")
            write_json(Path(folder) / "config.json", content.config)
            made = import_module(f"{panel}_models.neighbour").Neighbour(Path(folder), compiled)
        return made.step, made.decode
    backend = load_backend(panel)
    model = backend.build(spec, weights)
    trainer = backend.trainer(model, OptimizerSettings(), compiled)

    def step(tokens: np.ndarray, targets: np.ndarray) -> object:
        trainer.step([Batch(tokens, targets)], 1e-4)
        return trainer.read()

    def decode(prompt: np.ndarray) -> Iterator[int]:
        decoder = backend.decoder(model)
        logits = decoder.prefill(prompt)[:, -1]
        while True:
            tokens = logits.argmax(-1)
            yield int(tokens[0])
            logits = decoder.step(tokens)

    return step, decode


def show(args: argparse.Namespace, spec: Spec, rows: list[dict[str, Any]]) -> None:
    """Medians over the rounds, their spread, and the ratio to the neighbour."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name in ("peak", *KINDS, *(f"{kind}_share" for kind in KINDS)):
            found.setdefault(row["who"], {}).setdefault(name, []).append(row[name])
    table = Table("", "peak", *(title for kind in ("training", "reading", "decoding")
                                for title in (kind, "of bound", "times")),
                  box=None, title=f"{args.arch}, {spec.param_count():,} parameters, "
                  f"{args.batch} x {args.seq} tokens; medians (lowest … highest); {chip()}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, each in found.items():
        plain, _, form = name.partition("-")
        other = found.get("-".join(filter(None, (NEIGHBOURS.get(plain), form))))

        def cells(kind: str, each: dict[str, list[float]] = each,
                  other: dict[str, list[float]] | None = other) -> list[str]:
            rates = each[kind]
            times = f"{median(rates) / median(other[kind]):.2f}" if other else ""
            return [f"{median(rates):,.0f} ({min(rates):,.0f}…{max(rates):,.0f})",
                    f"{median(each[kind + '_share']):.0%}", times]

        peak = f"{median(each['peak']) / 2**20:,.0f} MiB"
        table.add_row(name, peak, *(cell for kind in KINDS for cell in cells(kind)))
    Console(highlight=False, width=160).print(table)


if __name__ == "__main__":
    main_exit(main)
