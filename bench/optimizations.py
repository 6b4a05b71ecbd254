"""What is commonly claimed of optimisations, beside what they do here, alone and stacked.

python bench/optimizations.py --out docs
python bench/optimizations.py --backend torch --only recompute sdpa rope --seeds 5
python bench/optimizations.py --quick

Tokens/s and peak memory against the baseline, in turn, a process for each training; for what
changes the model, held-out loss at equal steps and at equal time, over several seeds. All training
is that of train/run.py. Called again, it goes on where it stopped: OUT/optimizations.json holds
what is done; beside it the page (.md) and the picture (.png).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench import sheets
from bench.again import RESULTS
from bench.answers import key, numbered
from bench.claims import OPTIONS, Plan
from specs import UserError, main_exit, spec_type
from specs.backend import available_backends
from specs.machine import chip
from train.files import write_json
from train.results import resumed

TRIAL = Path(__file__).parent / "trial.py"
QUICK: dict[str, Any] = {"only": ["recompute", "sdpa", "rope", "moe"], "layers": 2, "width": 64,
                         "block": 64, "long": 512, "lengths": [32, 64], "steps": 20, "rounds": 1,
                         "seeds": 1}
FULL = {**{field.name: field.default for field in dataclasses.fields(Plan)},
        "steps": 100, "rounds": 2, "seeds": 3}
TIMED_TOKENS = 2_000  # of a training for its speed, at first
SECONDS = 1.5  # that it lasts at least, where more than two updates fit in
HELD_OUT = 8_192  # tokens of the held-out part that are read
START = 30_000  # tokens that could be trained in the time in which a process starts
FAR = 4  # what is so many times as slow as the baseline is not measured again
NEAR = 0.05  # a number of updates that differs by less is the same


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--backend", nargs="+", choices=available_backends(), metavar="NAME",
                      default=available_backends(), help="mlx, torch (all that are installed)")
    made.add_argument("--device", help="cpu, gpu (MLX), cuda, mps (PyTorch)")
    made.add_argument("--data", default="builtin", help="as of train/run.py (builtin)")
    made.add_argument("--only", nargs="+", choices=[option.key for option in OPTIONS],
                      metavar="KEY", help=f"of {', '.join(option.key for option in OPTIONS)} (all)")
    helps = {"layers": "of the model", "width": "of the model", "heads": "of attention",
             "block": "tokens in a window", "batch": "windows an update",
             "long": "tokens of the long window on which attention is compared",
             "steps": "updates of a training for its loss", "rounds": "of the speed, in turn",
             "seeds": "of each training for its loss"}
    for name, text in helps.items():
        made.add_argument(f"--{name}", type=int, help=f"{text} ({FULL[name]})")
    made.add_argument("--lengths", type=int, nargs="+", metavar="T",
                      help="windows to train on for equal time (64 128 256 512)")
    made.add_argument("--quick", action="store_true", help="a few options at the smallest sizes")
    made.add_argument("--out", type=Path, default=RESULTS, help=f"folder ({RESULTS})")
    return made


def main() -> None:
    args = parser().parse_args()
    for name, value in {**FULL, **(QUICK if args.quick else {})}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        if isinstance(value, int) and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    plan = Plan(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Plan)
                   if field.name not in ("only", "lengths")},
                only=tuple(args.only), lengths=tuple(sorted(set(args.lengths))))
    if os.path.exists(args.data):
        args.data = os.path.abspath(args.data)
    baseline = plan.setups()["baseline"]
    document: dict[str, Any] = {
        "about": {**json.loads(json.dumps(dataclasses.asdict(plan))), "steps": args.steps,
                  "data": args.data, "device": args.device, "chip": chip()},
        "parameters": spec_type("gpt").from_dict(baseline.fields).param_count(),
        "versions": {}, "trials": {}}
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "optimizations.json"
    document = resumed(file, document["about"], "trials", "--out") or document
    Bench(args, plan, document, file).run()
    sheets.page(document, plan, file.with_suffix(".md"), "optimizations.png")
    sheets.draw(document, plan, file.with_suffix(".png"))
    sheets.on_terminal(document, plan, Console(highlight=False, markup=False))
    print(file, file.with_suffix(".md"), file.with_suffix(".png"), sep=", ")


class Worker:
    """A process of bench/trial.py for one backend; a dead one is begun anew."""

    def __init__(self, backend: str, device: str | None):
        self.backend, self.device, self.said = backend, device, tempfile.TemporaryFile()
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        self.said.close()

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        if self.process and self.process.poll() is not None:
            self.end()
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, TRIAL], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self.said, text=True)
        assert self.process.stdin and self.process.stdout
        task = {**task, "backend": self.backend, "device": self.device}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if answer:
            return json.loads(answer)
        self.end()
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return {"error": lines[-1] if lines else "the process was killed"}


class Bench:
    """Runs what is not done yet, and writes every result down at once."""

    def __init__(self, args: argparse.Namespace, plan: Plan, document: dict[str, Any], file: Path):
        self.args, self.plan, self.document, self.file = args, plan, document, file
        self.setups, self.trials = plan.setups(), document["trials"]

    def run(self) -> None:
        columns = (BarColumn(), TextColumn("{task.percentage:.0f} %"), TextColumn("ETA"),
                   TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True)) as progress:
            self.progress = progress
            self.bar = progress.add_task("", total=sum(map(self.weight, self.every())))
            for number in range(self.args.rounds):
                for name in self.setups:
                    for backend in self.args.backend:
                        with Worker(backend, self.args.device) as worker:
                            self.do(worker, "speed", name, number)
            for number in range(self.args.seeds):
                for backend in self.args.backend:
                    with Worker(backend, self.args.device) as worker:
                        for kind, name in self.learnt():
                            self.do(worker, kind, name, number)

    def learnt(self) -> list[tuple[str, str]]:
        return [*((kind, name) for name in self.plan.learnt for kind in ("steps", "time")),
                *(("time", f"length {length}") for length in self.plan.lengths)]

    def every(self) -> Iterator[tuple[str, str]]:
        """(kind, name) of all trials."""
        for _ in self.args.backend:
            for _ in range(self.args.rounds):
                yield from (("speed", name) for name in self.setups)
            for _ in range(self.args.seeds):
                yield from self.learnt()

    def weight(self, trial: tuple[str, str]) -> int:
        """About how many tokens' time it takes; that of equal time is the baseline's."""
        kind, name = trial
        if kind == "speed":
            return START + self.updates("", kind, name) * self.setups[name].tokens
        setup = self.setups[name if kind == "steps" else "baseline"]
        return self.args.steps * setup.tokens

    def updates(self, backend: str, kind: str, name: str) -> int:
        """How many updates a training has."""
        setup = self.setups[name]
        if kind == "speed":
            return max(2, -(-TIMED_TOKENS // setup.tokens))
        if kind == "steps":
            return self.args.steps
        base = self.plan.base_of(name)
        mine, other = (median(trial["rate"] for trial in numbered(
            self.trials, backend, "speed", each).values()) / self.setups[each].tokens
            for each in (name, base))
        return max(1, round(self.args.steps * mine / other))

    def needless(self, backend: str, kind: str, name: str, number: int) -> bool:
        """Whether the trial is done, or would show nothing more."""
        done = self.trials.get(key(backend, kind, name, number), {"error": ""})
        if "error" not in done:
            return True
        mine, other = (numbered(self.trials, backend, "speed", each)
                       for each in (name, self.plan.base_of(name)))
        if kind == "speed":
            return 0 in mine and 0 in other and mine[0]["rate"] * FAR < other[0]["rate"]
        if not (mine and other):  # it does not run here
            return True
        near = abs(self.updates(backend, kind, name) / self.args.steps - 1) < NEAR
        return kind == "time" and near and name in self.plan.learnt

    def do(self, worker: Worker, kind: str, name: str, number: int) -> None:
        """One trial, unless it is needless."""
        place = key(worker.backend, kind, name, number)
        self.progress.update(self.bar, description=place)
        if not self.needless(worker.backend, kind, name, number):
            found = worker.ask(self.task(worker.backend, kind, name, number))
            if found.get("ending", "done") != "done":
                found = {"error": found["ending"]}
            if "error" in found and name in ("baseline", "long plain"):
                raise UserError(f"{place}: {found['error']}")
            if "versions" in found:
                self.document["versions"][worker.backend] = found.pop("versions")
            self.trials[place] = found
            write_json(self.file, self.document)
            said = found.get("error") or f"{found['rate']:,.0f} tokens/s, {found['loss']:.3f} nats"
            self.progress.console.print(f"{place}: {said}", highlight=False, soft_wrap=True)
        self.progress.advance(self.bar, self.weight((kind, name)))

    def task(self, backend: str, kind: str, name: str, number: int) -> dict[str, Any]:
        setup, updates = self.setups[name], self.updates(backend, kind, name)
        speed, block = kind == "speed", setup.fields["block_size"]
        windows = 1 if speed else max(1, HELD_OUT // block)
        settings = {"steps": updates, "seed": number, "data": self.args.data,
                    "log_every": max(1, updates // 5), "eval_windows": windows,
                    "eval_every": updates, "save_every": updates}
        words = [text for option, value in settings.items()
                 for text in ("--" + option.replace("_", "-"), str(value))]
        lengths = list(self.plan.lengths) if name.startswith("length") and not speed else []
        return {"arguments": [*setup.arguments(), *words], "lengths": lengths,
                "held_out": HELD_OUT, "seconds": SECONDS if speed else 0}


if __name__ == "__main__":
    main_exit(main)
