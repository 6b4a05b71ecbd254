"""An experiment carried out: one arm after the other, each in a process of its own.

What is done is written down at once, in runs/NAME/results.json, and never done again; a training
that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from specs import UserError
from train import metrics
from train.files import remove_folder, write_json
from train.numerals import duration
from train.rundir import RUNS
from train.study.plan import Arm, Plan

WORKER = Path(__file__).parent / "worker.py"
PATIENCE = 60.0  # seconds that a training which was left alone may take to save and end
Document = dict[str, Any]


@contextmanager
def locked(folder: Path, console: Console) -> Iterator[Any]:
    """Keep a second experiment out of `folder`. The lock is the worker's too: so the next one waits
    until a training whose experiment was killed has saved."""
    with open(folder / ".lock", "w") as file:
        start = time.monotonic()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                waited = time.monotonic() - start
            if waited > PATIENCE:
                raise UserError(f"another process carries out {folder}: wait for it, stop it, or "
                                "choose another --name")
            if waited < 0.1:
                console.print(f"{folder} is in use: waiting", highlight=False)
            time.sleep(0.2)
        yield file


class Runner:
    """Does what is not done yet of a plan, in the folder runs/`group`."""

    def __init__(self, plan: Plan, document: Document, group: str, backend: str,
                 device: str | None, lock: Any):
        self.plan, self.document, self.group = plan, document, group
        self.backend, self.device, self.lock = backend, device, lock
        self.file = RUNS / group / "results.json"
        for name in [name for name, figures in plan.found.items()
                     if figures.get("error", "diverged") != "diverged"]:
            del plan.found[name]  # what failed is tried once more

    def run(self) -> None:
        columns = (BarColumn(bar_width=18), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True)) as progress:
            self.progress, self.bar = progress, progress.add_task("")
            while arm := next((arm for arm in self.plan.arms() if not self.plan.known(arm)), None):
                old = RUNS / self.group / arm.name
                if arm.name in self.plan.found and old.exists():
                    remove_folder(old)
                self.show(arm)
                start = time.monotonic()
                figures = self.ask(arm)
                self.note(arm, figures)
                self.say(arm, figures, time.monotonic() - start)
            self.show(None)

    def left(self) -> str:
        """How long all that is not done will take."""
        seconds = sum(self.plan.seconds(arm) for arm in self.plan.arms()
                      if not self.plan.known(arm))
        return duration(seconds)

    def show(self, arm: Arm | None, place: str = "") -> None:
        arms = list(self.plan.arms())
        done = sum(map(self.plan.known, arms))
        text = f"{arm.name}{place}  ETA {self.left()}" if arm else "done"
        self.progress.update(self.bar, total=len(arms), completed=done, description=text)

    def say(self, arm: Arm, figures: dict[str, Any], seconds: float) -> None:
        """One line for each arm."""
        if "error" in figures:
            text = figures["error"]
        elif arm.kind == "measure":
            text = "; ".join(brief(figures))
        elif arm.kind == "probe":
            decoding = (f", {rate:,.0f} tokens/s decoded behind {length}"
                        for length, rate in figures["decoding"].items())
            text = f"{figures['memory'] / 1e6:,.0f} MB" + "".join(decoding)
        else:
            text = (f"{figures['updates']} steps, {figures['loss']:.4f} nats, "
                    f"{figures['rate']:,.0f} tokens/s")
        arms = list(self.plan.arms())
        done = sum(map(self.plan.known, arms))
        self.progress.console.print(
            f"{done}/{len(arms)} {arm.name}: {text}, {duration(seconds)}  ETA {self.left()}",
            highlight=False, soft_wrap=True, markup=False)

    def note(self, arm: Arm, figures: dict[str, Any]) -> None:
        """Write down what an arm showed."""
        self.document["versions"] |= figures.pop("versions", {})
        self.plan.found[arm.name] = {"setup": arm.setup, "kind": arm.kind, "lr": arm.lr,
                                     "seed": arm.seed, **figures}
        write_json(self.file, {**self.document, "arms": self.plan.found})

    def task(self, arm: Arm) -> dict[str, Any]:
        plan, name = self.plan, f"{self.group}/{arm.name}"
        common = {"backend": self.backend, "device": self.device}
        if arm.kind == "measure":
            measure = plan.measures[arm.setup]
            if measure.backend not in (None, self.backend):
                common = {"backend": measure.backend, "device": None}
            return {**common, "name": None, "measure": measure.place,
                    "vocab_size": plan.vocab_size,
                    "cases": {each: [*plan.setups[each].arguments(), *plan.words]
                              for each in measure.setups}}
        if arm.kind == "probe":
            setup = plan.setups[arm.setup]
            return {**common, "name": None, "words": setup.arguments(),
                    "vocab_size": plan.vocab_size, "contexts": list(plan.experiment.contexts)}
        faults, most = list(plan.setups[arm.setup].faults), plan.specs[arm.setup].max_length
        lengths = [length for length in plan.lengths if most is None or length <= most]
        return {**common, "name": name, "words": plan.training_words(arm), "faults": faults,
                "lengths": lengths}

    def ask(self, arm: Arm) -> dict[str, Any]:
        """The figures of one arm. Raises `KeyboardInterrupt` once its training has saved."""
        task = self.task(arm)
        with tempfile.TemporaryFile("w+") as answer, tempfile.TemporaryFile("w+") as said:
            # A session of its own: Ctrl-C is for this process, which then asks the worker to end.
            process = subprocess.Popen(
                [sys.executable, WORKER], stdin=subprocess.PIPE, stdout=answer, stderr=said,
                text=True, start_new_session=True, pass_fds=(self.lock.fileno(),))
            assert process.stdin
            try:
                with suppress(BrokenPipeError):  # it is dead already
                    process.stdin.write(json.dumps(task) + "\n")
                    process.stdin.flush()
                while not self.ended(process):
                    self.watch(arm, task)
            finally:
                with suppress(BrokenPipeError):
                    process.stdin.close()
                process.wait()
            lines = [file.read().strip().splitlines() for file in (answer, said)
                     if file.seek(0) == 0]
            if process.returncode == 0:
                found: dict[str, Any] = json.loads(lines[0][-1])
                if found.get("error") == "interrupted":
                    raise KeyboardInterrupt
                return found
            killed = "it was killed" if process.returncode == -signal.SIGKILL else "it failed"
            return {"error": lines[1][-1] if lines[1] and killed == "it failed" else killed}

    @staticmethod
    def ended(process: subprocess.Popen[str]) -> bool:
        """Whether it has ended, after at most two seconds."""
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            return False
        return True

    def watch(self, arm: Arm, task: dict[str, Any]) -> None:
        """Where a training is, on a terminal."""
        if self.progress.console.is_terminal and task["name"]:
            rows = [row for row in metrics.read(RUNS / task["name"] / "metrics.jsonl")
                    if row.get("tokens_per_s")]
            places = [f" step {row['step']} {row['tokens_per_s']:,.0f} tok/s" for row in rows[-1:]]
            self.show(arm, "".join(places))


def brief(figures: dict[str, Any], name: str = "") -> list[str]:
    """All numbers of a measure, each with its name."""
    found = []
    for key, value in figures.items():
        if isinstance(value, dict):
            found += brief(value, f"{name}{key} ")
        elif isinstance(value, int | float):
            found.append(f"{name}{key} {value:.4g}")
    return found
