"""Kill a run again and again and see that nothing is lost.

python bench/kill_test.py --kills 100 --backend mlx
python bench/kill_test.py --kills 100 --backend torch
python bench/kill_test.py --kills 100 --backend both     # another backend after each kill

A tiny run is killed by SIGKILL at random moments, starting and saving among them, and resumed. All
checkpoints that a kill leaves must be whole. It runs on the CPU: the sums of a GPU have no fixed
order. On one backend the last weights must equal those of the unbroken run bit for bit. With both,
the losses must stay as near to an unbroken run's as the two backends' unbroken runs are to each
other, times eight. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.progress import Progress

from specs import UserError, main_exit
from specs.backend import BACKENDS, Arrays
from train import checkpoint, metrics
from train.rundir import RUNS

TRAIN = Path(__file__).parent.parent / "train" / "run.py"
OPTIONS = ["--device", "cpu", "--arch", "bdh", "--preset", "tiny", "--set", "vocab_size=256",
           "--set", "dropout=0.1", "--block-size", "32", "--batch-size", "4", "--log-every", "1",
           "--eval-every", "4", "--eval-windows", "4", "--save-every", "2",
           "--lr", "1e-4"]  # a rate at which the two backends do not part by chaos
STEPS_PER_KILL = 12  # twice what is aimed at: some more pass before the signal comes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often (20)")
    parser.add_argument("--backend", choices=[*BACKENDS, "both"], default="both")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    args = parser.parse_args()
    if args.kills < 1:
        raise UserError(f"--kills {args.kills} must be at least 1")
    backends = list(BACKENDS) if args.backend == "both" else [args.backend]
    options = [*OPTIONS, "--steps", str(STEPS_PER_KILL * args.kills + 20)]
    for name in ("killed", *(f"unbroken-{backend}" for backend in backends)):
        shutil.rmtree(RUNS / name, ignore_errors=True)
    for backend in backends:
        if start(backend, "--name", f"unbroken-{backend}", *options).wait():
            raise UserError(f"the unbroken run on {backend} failed: see above")
    saving = kill_and_resume(args.kills, backends, options, random.Random(args.seed))
    print(f"{args.kills} kills, {saving} of them while a checkpoint was being written")
    return verdict(backends)


def start(backend: str, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, TRAIN, "--backend", backend, *options],
                            stderr=subprocess.PIPE if "--resume" in options else None)


def kill_and_resume(kills: int, backends: list[str], options: list[str],
                    moments: random.Random) -> int:
    """Kill and resume until the run has died `kills` times, then let it end; how many of the
    deaths left a half-written checkpoint behind."""
    saving = 0
    with Progress() as progress:
        task = progress.add_task("kills", total=kills)
        for death in range(kills + 1):
            backend = backends[death % len(backends)]
            begun = (RUNS / "killed").exists()
            process = start(backend, *(["--resume", "killed"] if begun else
                                       ["--name", "killed", *options]))
            if death < kills:
                wait(process, moments)
                process.kill()
                process.wait()
                saving += is_saving()
                for step in checkpoint.steps(RUNS / "killed"):
                    checkpoint.load(checkpoint.folder(RUNS / "killed", step))
            _, said = process.communicate()
            if process.returncode not in (0, -9):
                raise UserError(f"the run could not go on after kill {death}: "
                                + (said or b"").decode().strip())
            progress.update(task, completed=min(death + 1, kills))
    return saving


def wait(process: subprocess.Popen[bytes], moments: random.Random) -> None:
    """Until a random moment: one in ten while the process starts, one in two while it saves, the
    others while it trains."""
    kind = moments.random()
    if kind < 0.1:
        time.sleep(moments.uniform(0, 2))
        return
    aim = last_step() + moments.randrange(1, STEPS_PER_KILL // 2)
    while process.poll() is None and last_step() < aim:
        time.sleep(0.005)
    if kind < 0.6:
        while process.poll() is None and not is_saving():
            time.sleep(0.0002)
        time.sleep(moments.uniform(0, 0.01))
    else:
        time.sleep(moments.uniform(0, 0.05))


def is_saving() -> bool:
    return any((RUNS / "killed").glob(".step-*.[0-9]*.tmp"))


def last_step() -> int:
    rows = metrics.read(RUNS / "killed" / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def verdict(backends: list[str]) -> int:
    """Compare the killed run with the unbroken ones; 0 if it is the same run."""
    whole = {name: losses(f"unbroken-{name}") for name in backends}
    killed = losses("killed")
    first = whole[backends[0]]
    apart = float(np.abs(killed - first).max())
    if len(backends) == 1:
        unbroken = final(f"unbroken-{backends[0]}")
        same = all(np.array_equal(array, unbroken[name])
                   for name, array in final("killed").items())
        print("last weights: " + ("the same bits" if same else "DIFFERENT")
              + f"; losses at most {apart:.1e} apart")
        return 0 if same and apart == 0 else 1
    room = 8 * float(np.abs(whole[backends[1]] - first).max())
    print(f"losses: killed and handed over at most {apart:.1e} from {backends[0]} alone; room: "
          f"{room:.1e}, eight times the distance of the two backends alone")
    return 0 if apart <= room else 1


def losses(name: str) -> np.ndarray:
    rows = metrics.read(RUNS / name / "metrics.jsonl")
    return np.array([row["loss"] for row in rows if "loss" in row])


def final(name: str) -> Arrays:
    _, (weights, optimizer), _ = checkpoint.load_last(RUNS / name)
    return {**weights, **optimizer}


if __name__ == "__main__":
    main_exit(main)
