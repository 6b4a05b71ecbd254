"""The first two minutes (`make demo`): train, look, read, check, all by the ordinary commands."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from specs import main_exit
from specs.backend import BACKENDS, available_backends
from train import metrics, plots
from train.rundir import RUNS, free_name

ROOT = Path(__file__).parent.parent
CONSOLE = Console(highlight=False, soft_wrap=True)
TRAINING = ["--arch", "bdh", "--preset", "demo", "--steps", "200", "--batch-size", "8",
            "--optimizer", "muon", "--lr", "2e-2", "--eval-every", "100", "--save-every", "100"]
RUNGS = "parameters,logits,gradients,decoding,sampling"


def main() -> int:
    backends = available_backends()
    name = free_name("demo")
    steps = [
        ("Training BDH on the documentation that ships with Python",
         ["train/run.py", "--backend", backends[0], *TRAINING, "--name", name]),
        ("Generating", ["generate/run.py", "--run", name, "--prompt", "The "]),
        ("Checking that both backends agree on the model just trained",
         ["parity/check.py", "--run", name, "--rungs", RUNGS]),
    ]
    for title, command in steps[: 2 if len(backends) < len(BACKENDS) else 3]:
        run(title, command)
        if command[0] == "train/run.py":
            plots.on_terminal(metrics.read(RUNS / name / "metrics.jsonl"))
    other = backends[-1]
    CONSOLE.print(f"""
[bold]Now try[/bold]
  source .venv/bin/activate
  python train/run.py --resume {name} --steps 400 --backend {other}     go on, on {other}
  python generate/run.py --run {name} --prompt "A class is "       let it write
  python train/run.py --arch bdh --preset 10m --data YOUR.txt --minutes 30     your own text""")
    return 0


def run(title: str, command: list[str]) -> None:
    """One of the project's commands, shown as a person would type it."""
    CONSOLE.print(f"\n[bold]{title}[/bold]\n[dim]$ python {shlex.join(command)}[/dim]")
    done = subprocess.run([sys.executable, ROOT / command[0], *command[1:]])
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main_exit(main)
