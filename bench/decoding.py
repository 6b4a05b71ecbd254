"""What a token costs behind a long text: from a cache, from a state, or read anew.

python bench/decoding.py --arch bdh --preset 25m --contexts 64 512 4096 16384
python bench/decoding.py --arch gpt --preset medium --set n_layer=3 --set n_kv_head=2

Each backend runs in a process of its own, in turn. For every kind of decoding state that the
architecture has: milliseconds a token (median) and the share of what the memory bandwidth, measured
in the same run, allows. "anew" reads the whole text again for each token. A state larger than
--memory is left out. runs/bench/decoding.json and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.again import RESULTS, again
from specs import Spec, UserError, init_weights, main_exit, spec_type
from specs.backend import available_backends, load_backend
from specs.base import parse_field
from specs.machine import chip
from train.files import write_json

READ = 2  # how often a text is read anew; the shorter time counts
Figures = dict[str, dict[str, Any]]  # backend → {"bandwidth": …, kind: {context: seconds}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="bdh")
    parser.add_argument("--preset", default="25m")
    parser.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[],
                        help="any field of the spec; may be repeated")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 512, 4096], metavar="T")
    parser.add_argument("--backend", nargs="+", default=available_backends(), metavar="NAME")
    parser.add_argument("--tokens", type=int, default=40, help="timed at each context (40)")
    parser.add_argument("--memory", type=float, default=8, help="GB for the largest state (8)")
    parser.add_argument("--run", metavar="BACKEND", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(*args.contexts, args.tokens - 1) < 1:
        raise UserError("--contexts must be at least 1, --tokens at least 2")
    fields = dict(parse_field(text) for text in args.set)
    spec = spec_type(args.arch).preset(args.preset, **fields)
    if args.run:
        json.dump(measure(spec, args), sys.stdout)
        return
    found: Figures = {}
    for name in args.backend:
        found[name] = again(name)
    bandwidth = max(figures["bandwidth"] for figures in found.values())
    show(spec, args, found, bandwidth)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "decoding.json", {
        "chip": chip(), "arch": args.arch, "spec": spec.to_dict(), "bandwidth": bandwidth,
        "backends": found})
    draw(spec, args, found)
    print(RESULTS / "decoding.json", RESULTS / "decoding.png", sep=", ")


def measure(spec: Spec, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one token of one sequence, by state and context."""
    backend = load_backend(args.run)
    model = backend.build(spec, init_weights(spec))
    text = np.random.default_rng(0).integers(0, spec.vocab_size, (1, max(args.contexts)))
    figures: dict[str, Any] = {kind: {} for kind in (*spec.decode_kinds, "anew")}
    backend.decoder(model, 1, 2, spec.decode_kinds[0]).prefill(np.zeros((1, 2), np.int32))
    for length in args.contexts:
        for kind in spec.decode_kinds:
            if spec.decode_state_bytes(length + args.tokens, kind) > args.memory * 1e9:
                continue
            for _ in range(READ):
                decoder = backend.decoder(model, 1, length + args.tokens, kind)
                start = time.perf_counter()
                decoder.prefill(text[:, :length].astype(np.int32))
                anew = time.perf_counter() - start
                figures["anew"][length] = min(anew, figures["anew"].get(length, anew))
            seconds = []
            for _ in range(args.tokens):
                start = time.perf_counter()
                decoder.step(text[:, 0].astype(np.int32))
                seconds.append(time.perf_counter() - start)
            figures[kind][length] = median(seconds[1:])
            print(f"{args.run} {kind} {length}: {figures[kind][length] * 1e3:.1f} ms",
                  file=sys.stderr)
    return {**figures, "bandwidth": backend.bandwidth(), "versions": backend.versions()}


def show(spec: Spec, args: argparse.Namespace, found: Figures, bandwidth: float) -> None:
    kinds = [*spec.decode_kinds, "anew"]
    table = Table("backend", "context", box=None, title=f"{chip()}: {bandwidth / 1e9:.1f} GB/s")
    for kind in kinds:
        table.add_column(f"{kind}, ms", justify="right")
        if kind != "anew":
            table.add_column("of bound", justify="right")
            table.add_column("state, MB", justify="right")
    for name, figures in found.items():
        for length in map(str, args.contexts):
            cells = []
            for kind in kinds:
                seconds = figures[kind].get(length)
                cells.append(f"{seconds * 1e3:,.1f}" if seconds else "")
                if kind != "anew":
                    traffic = spec.decode_traffic(int(length), kind)
                    held = spec.decode_state_bytes(int(length), kind)
                    cells.append(f"{traffic / bandwidth / seconds:.0%}" if seconds else "")
                    cells.append(f"{held / 1e6:,.0f}")
            table.add_row(name, f"{int(length):,}", *cells)
    Console(highlight=False).print(table)


def draw(spec: Spec, args: argparse.Namespace, found: Figures) -> None:
    """Milliseconds a token over the context, on log axes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, style in zip(found, ("-", "--"), strict=False):
        for number, kind in enumerate((*spec.decode_kinds, "anew")):
            points = found[name][kind]
            axes.loglog([int(length) for length in points],
                        [seconds * 1e3 for seconds in points.values()], f"C{number}o{style}",
                        label=f"{kind}, {name}")
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("milliseconds for one more")
    axes.set_title(f"{args.arch} {' '.join([args.preset, *args.set])}, {chip()}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS / "decoding.png", dpi=130)


if __name__ == "__main__":
    main_exit(main)
