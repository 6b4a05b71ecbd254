"""One run, two backends: begun on MLX, continued on PyTorch, ended on MLX, beside unbroken runs.

python bench/relay.py [--arch bdh --steps 300]

Trains the same run three times (MLX alone, PyTorch alone, handed over twice) by train/run.py,
draws the three loss curves on top of each other and, below, how far they part; runs/relay.png.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

from specs import UserError, main_exit
from specs.backend import BACKENDS, available_backends
from train import metrics
from train.plots import Rows, series
from train.rundir import RUNS

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

TRAIN = Path(__file__).parent.parent / "train" / "run.py"
PICTURE = RUNS / "relay.png"
RUNNERS = ["relay-mlx", "relay-torch", "relay"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="bdh")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    if len(available_backends()) < 2:
        raise UserError("the relay needs both backends: pip install -e '.[all]'")
    if args.steps < 3:
        raise UserError(f"--steps {args.steps} must be at least 3, one for each leg")
    options = ["--arch", args.arch, "--steps", str(args.steps), "--batch-size", "8",
               "--log-every", "1"]
    for name in RUNNERS:
        shutil.rmtree(RUNS / name, ignore_errors=True)
    for backend in BACKENDS:
        train("--name", f"relay-{backend}", "--backend", backend, *options)
    train("--name", "relay", "--backend", "mlx", *options, until=args.steps // 3)
    train("--resume", "relay", "--backend", "torch", until=2 * args.steps // 3)
    train("--resume", "relay", "--backend", "mlx")
    rows = {name: metrics.read(RUNS / name / "metrics.jsonl") for name in RUNNERS}
    draw(rows)
    for name in RUNNERS[1:]:
        _, apart = distances(rows[name], rows["relay-mlx"])
        print(f"{name}: at most {max(apart):.1e} of the loss away from MLX alone")
    print(PICTURE)


def train(*options: str, until: int | None = None) -> None:
    """train/run.py to its end, or until Ctrl-C is pressed after step `until`."""
    process = subprocess.Popen([sys.executable, TRAIN, *options])
    while until is not None and process.poll() is None:
        rows = metrics.read(RUNS / "relay" / "metrics.jsonl")
        if rows and rows[-1]["step"] >= until:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.2)
    if process.wait() != (0 if until is None else 130):
        raise UserError("a leg of the relay failed: see above")


def distances(rows: Rows, alone: Rows) -> tuple[list[int], list[float]]:
    """(steps, relative distance of the losses) at the steps that both have logged."""
    losses = dict(zip(*series(alone, "loss"), strict=True))
    pairs = [(step, abs(loss / losses[step] - 1))
             for step, loss in zip(*series(rows, "loss"), strict=True) if step in losses]
    return [step for step, _ in pairs], [max(apart, 1e-8) for _, apart in pairs]


def draw(rows: dict[str, Rows]) -> None:
    """Loss curves above, distance to MLX alone below."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained",
                                          height_ratios=(2, 1))
    above.plot(*series(rows["relay-mlx"], "loss"), "C0", lw=6, alpha=0.35, label="MLX alone")
    above.plot(*series(rows["relay-torch"], "loss"), "C1", lw=3, alpha=0.8, label="PyTorch alone")
    above.plot(*series(rows["relay"], "loss"), "k", lw=1, label="MLX, then PyTorch, then MLX")
    for name, color in (("relay-torch", "C1"), ("relay", "k")):
        below.semilogy(*distances(rows[name], rows["relay-mlx"]), color, lw=1)
    logged = [row for row in rows["relay"] if "backend" in row]
    handovers = [one["step"] for one, next in itertools.pairwise(logged)
                 if one["backend"] != next["backend"]]
    for axes in (above, below):
        for step in handovers:
            axes.axvline(step, color="gray", lw=0.8, ls=":")
        axes.grid(alpha=0.3)
    above.set_ylabel("training loss (nats per token)")
    above.legend()
    below.set_ylabel("relative distance\nto MLX alone")
    below.set_xlabel("step")
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main_exit(main)
