"""What this machine can do: each architecture on each backend, beside the machine's own bound.

python bench/compare_backends.py --arch bdh --preset demo
python bench/compare_backends.py --arch all --quick

Backends run in processes of their own, in turn, several rounds; medians over the rounds, with the
spread. The bound of training, forward and prefill is FLOPs over the best matrix-product rate
measured in this very run; that of decoding is bytes over the best bandwidth.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.again import RESULTS
from specs import Spec, UserError, architectures, main_exit, spec_type
from specs.backend import available_backends, device_of
from specs.machine import chip
from train.files import write_json
from train.study.probe import DECODED

WORKER = Path(__file__).parent / "worker.py"
CONSOLE = Console(highlight=False)
Rounds = dict[str, list[dict[str, Any]]]  # backend → what its worker measured in each round


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--arch", nargs="+", default=["all"], metavar="NAME")
    made.add_argument("--preset", default="demo")
    made.add_argument("--batch", type=int, default=8, help="windows per training step (8)")
    made.add_argument("--seq", type=int, help="tokens per window (default: the preset's)")
    made.add_argument("--contexts", type=int, nargs="+", default=[64, 512, 4096], metavar="T",
                      help="lengths at which decoding is timed (64 512 4096)")
    made.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    made.add_argument("--device", nargs="+", default=[], metavar="NAME", help="cpu, gpu (MLX), "
                      "cuda, mps (PyTorch): each backend takes the first of these that it knows")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--quick", action="store_true", help="one short round of everything")
    return made


def main() -> None:
    args = parser().parse_args()
    for name in ("batch", "rounds", *(["seq"] if args.seq else [])):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    names = architectures() if args.arch == ["all"] else args.arch
    rounds = 1 if args.quick else args.rounds
    documents = []
    for arch in names:
        spec = spec_type(arch).preset(args.preset, **({"block_size": args.seq} if args.seq else {}))
        most = (spec.max_length or math.inf) - DECODED
        contexts = [length for length in args.contexts if length <= most]
        task = {"arch": arch, "spec": spec.to_dict(), "batch": args.batch, "seq": spec.block_size,
                "contexts": contexts[:2] if args.quick else contexts,
                "dtype": args.dtype, "seconds": 0.3 if args.quick else 2.0}
        found: Rounds = {backend: [] for backend in available_backends()}
        order = [backend for _ in range(rounds) for backend in found]
        for backend in track(order, f"{arch} {args.preset}", console=CONSOLE, transient=True):
            found[backend].append(run_worker({
                **task, "backend": backend, "device": device_of(backend, args.device)}))
        document = summary(spec, args.preset, task, found)
        documents.append(document)
        show(document)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "compare_backends.json", {
        "chip": chip(), "system": platform.platform(), "python": platform.python_version(),
        "models": documents})
    picture = draw(documents)
    CONSOLE.print(f"{RESULTS / 'compare_backends.json'}, {picture}")


def run_worker(task: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, WORKER, json.dumps(task)], capture_output=True,
                          text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise UserError(f"{task['backend']} could not measure {task['arch']}: {reason}")
    return json.loads(done.stdout)


def summary(spec: Spec, preset: str, task: dict[str, Any], found: Rounds) -> dict[str, Any]:
    """Medians, spreads and fractions of the bound, as one JSON document."""
    T = task["seq"]
    forward = spec.flops_per_token(T) * T
    needs = {"train": 3 * forward * task["batch"], "forward": forward * task["batch"],
             "prefill": forward}
    needs |= {f"decode {length}": spec.decode_traffic(length) for length in task["contexts"]}
    rates = {backend: best_rates(found, backend) for backend in found}
    tokens = {"train": T * task["batch"], "forward": T * task["batch"], "prefill": T}
    figures: dict[str, dict[str, Any]] = {}
    for name, need in needs.items():
        figures[name] = {}
        for backend, results in found.items():
            seconds = [result["seconds"][name] for result in results]
            middle = median(seconds)
            bound = need / rates[backend]["bandwidth" if "decode" in name else "matmul"]
            figures[name][backend] = {
                "seconds": seconds, "median": middle, "fraction_of_bound": bound / middle,
                "tokens_per_s": tokens.get(name, 1) / middle,
                "spread": (max(seconds) - min(seconds)) / middle}
    return {"arch": spec.arch, "preset": preset, "parameters": spec.param_count(), **task,
            "rates": rates, "figures": figures,
            "memory": {name: max(r["memory"] for r in results) for name, results in found.items()},
            "versions": {name: results[0]["versions"] for name, results in found.items()}}


def best_rates(found: Rounds, backend: str) -> dict[str, float]:
    """FLOP/s and bytes/s of the device that this backend is on, by whichever measured most."""
    device = found[backend][0]["versions"]["device"]
    same = [result for results in found.values() for result in results
            if result["versions"]["device"] == device]
    return {name: max(result[name] for result in same) for name in ("matmul", "bandwidth")}


def show(document: dict[str, Any]) -> None:
    backends = list(document["versions"])
    CONSOLE.print(
        f"\n[bold]{document['arch']} {document['preset']}[/bold]: {document['parameters']:,} "
        f"parameters, {document['dtype']}, {document['batch']} × {document['seq']} tokens")
    for backend, versions in document["versions"].items():
        rates = document["rates"][backend]
        CONSOLE.print(f"{backend} {versions[backend]} on {versions['device']}, {versions['chip']}: "
                      f"{rates['matmul'] / 1e9:,.0f} GFLOP/s in matrix products, "
                      f"{rates['bandwidth'] / 1e9:.1f} GB/s")
    table = Table("", box=None)
    for backend in backends:
        for title in (f"{backend} tok/s", "±", "of bound"):
            table.add_column(title, justify="right")
    if len(backends) == 2:
        table.add_column(f"{backends[0]}/{backends[1]}", justify="right")
    for name, figures in document["figures"].items():
        cells = [cell for backend in backends for cell in (
            f"{figures[backend]['tokens_per_s']:,.0f}", f"{figures[backend]['spread']:.0%}",
            f"{figures[backend]['fraction_of_bound']:.0%}")]
        if len(backends) == 2:
            first, second = (figures[backend]["tokens_per_s"] for backend in backends)
            cells.append(f"{first / second:.2f}")
        table.add_row(name, *cells)
    table.add_row("training memory", *(cell for backend in backends for cell in (
        f"{document['memory'][backend] / 2**30:.2f} GB", "", "")))
    CONSOLE.print(table)


def draw(documents: list[dict[str, Any]]) -> Path:
    """Fraction of the bound, a group of bars for each task: RESULTS/compare_backends.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, every = plt.subplots(len(documents), 1, figsize=(8, 3 * len(documents)),
                                 squeeze=False, layout="constrained")
    for axes, document in zip(every[:, 0], documents, strict=True):
        names = list(document["figures"])
        for number, backend in enumerate(document["versions"]):
            shares = [document["figures"][name][backend]["fraction_of_bound"] for name in names]
            places = [place + 0.4 * number for place in range(len(names))]
            bars = axes.bar(places, shares, 0.38, label=backend)
            axes.bar_label(bars, [f"{document['figures'][name][backend]['tokens_per_s']:,.0f}"
                                  for name in names], fontsize=7)
        axes.set_xticks([place + 0.2 for place in range(len(names))], names)
        axes.set_ylabel("share of the bound")
        axes.set_title(f"{document['arch']} {document['preset']} (labels: tokens/s)", fontsize=10)
        axes.legend()
    picture = RESULTS / "compare_backends.png"
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


if __name__ == "__main__":
    main_exit(main)
