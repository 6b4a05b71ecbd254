"""Carry out an experiment: every training that its question needs, then a table, pictures and the
answer in words.

python train/experiment.py --list
python train/experiment.py architectures --backend torch
python train/experiment.py batch-vs-seqlen --quick
python train/experiment.py optimizers --only gpt-adamw gpt-muon --data novel.txt
python train/experiment.py architectures --full --data roneneldan/TinyStories --data-tokens 100M

Each training is a run of train/run.py, runs/NAME/…, to be resumed, generated from and checked like
any other. Killed at any time the experiment goes on where it stopped when the same command is
given again; what is done is not done again.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from specs import UserError, main_exit
from specs.backend import available_backends
from specs.base import did_you_mean
from specs.machine import chip
from train import experiments
from train.files import write_json, write_text
from train.numerals import duration
from train.options import data_options, given_settings
from train.results import resumed
from train.run import described, prepared
from train.rundir import NAME, RUNS
from train.settings import Settings
from train.study import claims
from train.study.pictures import draw
from train.study.plan import Plan
from train.study.report import machine_rows, on_terminal, page, size
from train.study.runner import Runner, locked
from train.study.setup import options

QUICK = 20  # updates


def parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:18}{experiment.question} About {experiment.minutes} minutes."
                       for name, experiment in every().items())
    made = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS,
        epilog=f"experiments, and how long they take on two cores:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("experiment", nargs="?", default=None, metavar="NAME")
    made.add_argument("--list", action="store_true", default=False,
                      help="show all experiments, or all trainings of one, and do nothing")
    made.add_argument("--backend", choices=available_backends(), default=available_backends()[0],
                      help=f"(default {available_backends()[0]})")
    made.add_argument("--device", default=None, help="cpu, gpu (MLX), cuda, mps (PyTorch)")
    size = made.add_argument_group("size")
    size.add_argument("--full", action="store_true", default=False,
                      help="the sizes of the original, for a large machine")
    size.add_argument("--quick", action="store_true", default=False,
                      help=f"{QUICK} steps and one seed: does all of it run?")
    size.add_argument("--steps", type=int, default=None, help="updates of the first setup; the "
                      "others see as many tokens")
    size.add_argument("--minutes", type=float, default=None,
                      help="end each training by the clock, in place of --steps")
    size.add_argument("--seeds", type=int, default=None, help="of each training (default 3)")
    size.add_argument("--only", nargs="+", metavar="SETUP", default=[], help="some of the setups")
    size.add_argument("--lr", nargs="+", type=float, metavar="LR", default=[],
                      help="these learning rates, in place of the setups' own")
    data_options(made, "bytes, bpe:SIZE (trained on the training part), or a tokenizer.json "
                 f"(default {Settings.tokenizer})")
    made.add_argument("--name", default=None, help="the folder of its runs, under runs/ (default: "
                      "the experiment's name, -full or -quick, and the backend's)")
    made.add_argument("--out", type=Path, default=None, help="folder of the page and its pictures "
                      "(default: that of the runs)")
    return made


def every() -> dict[str, Any]:
    return {name: experiments.load(name) for name in experiments.names()}


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200
    if args.experiment is None:
        if not args.list:
            raise UserError(f"which experiment? There are: {', '.join(experiments.names())}")
        for name, experiment in every().items():
            console.print(f"{name}: {experiment.question} About {experiment.minutes} minutes on "
                          "two cores.", soft_wrap=True)
        return 0
    check(args)
    group = args.name or "-".join([args.experiment, *(["full"] if args.full else []),
                                   *(["quick"] if args.quick else []), args.backend])
    folder = RUNS / group
    plan, about = planned(args, folder)
    if args.list:
        show(plan, console)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, Console(stderr=True)) as lock:
        document = opened(folder, args, plan, about)
        try:
            Runner(plan, document, group, args.backend, args.device, lock).run()
        except KeyboardInterrupt:
            print("stopped; the same command goes on with it", file=sys.stderr)
            return 130
        finish(plan, document, folder, args.out or folder, console)
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise `UserError` for numbers and names that cannot be."""
    if args.steps is not None and args.minutes is not None:
        raise UserError("--steps and --minutes both bound the trainings: give one of them")
    for name in ("steps", "minutes", "seeds"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} {value:g} must be positive")
    if any(not 0 < lr < math.inf for lr in args.lr):
        raise UserError("--lr must be positive")
    if args.name is not None and (not re.fullmatch(NAME, args.name)
                                  or (RUNS / args.name / "config.json").exists()):
        raise UserError(f"--name {args.name!r} must be letters, digits, '-', '_' and '.', and no "
                        "run's name")


def planned(args: argparse.Namespace, folder: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan, and what must be the same when it goes on."""
    experiment = experiments.load(args.experiment)
    if Path(getattr(args, "data", "")).exists() and "data" in args:
        args.data = str(Path(args.data).resolve())
    given = given_settings(argparse.Namespace(**{
        name: value for name, value in vars(args).items()
        if name.startswith(("data", "text", "stream", "tokenizer"))}))
    corpus, tokenizer = prepared(Settings(**given))
    setups = {name: setup for name, setup in experiment.setups(
        args.full, tokenizer.vocab_size).items()
        if args.minutes is None or "seq_curriculum" not in setup.settings}  # which goes by steps
    for name in args.only:
        if name not in setups:
            raise UserError(f"{args.experiment} has no setup {name!r}"
                            + did_you_mean(name, list(setups)))
    if given.get("tokenizer", "bytes") != "bytes" and not args.list:  # learnt once, used by all
        file = folder / "tokenizer.json"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, tokenizer.to_json())
        given["tokenizer"] = str(file.resolve())
    steps = args.steps or (QUICK if args.quick else experiment.steps[args.full])
    plan = Plan(experiment, setups, steps, args.seeds or (1 if args.quick else 3), args.minutes,
                tokenizer.vocab_size, options(given), tuple(sorted(args.lr)), tuple(args.only))
    about = {"experiment": args.experiment, "backend": args.backend, "device": args.device,
             "full": args.full, "steps": steps, "minutes": args.minutes, "only": args.only,
             "lr": sorted(args.lr), "corpus": described(corpus)["source"],
             "fingerprint": corpus.fingerprint}
    return plan, about


def opened(folder: Path, args: argparse.Namespace, plan: Plan, about: dict[str, Any],
           ) -> dict[str, Any]:
    """What runs/NAME/results.json holds already, in which the plan finds what is done."""
    file, command = folder / "results.json", shlex.join(["python", *sys.argv])
    document: dict[str, Any] = {"about": about, "command": command, "chip": chip(), "versions": {}}
    found = resumed(file, about, "arms", "--name")
    if found:
        plan.found.update(found["arms"])
        document["versions"] = found["versions"]
    elif any(folder.glob("*/config.json")):
        raise UserError(f"{folder} holds trainings, and no {file.name} that says which: choose "
                        "another --name, or delete it")
    return document


def show(plan: Plan, console: Console) -> None:
    """The setups and how they are trained, all trainings and how long they may take."""
    table = Table("setup", "parameters", "train/run.py", box=None)
    table.columns[2].overflow = "fold"
    for name, setup in plan.setups.items():
        table.add_row(name, size(plan.specs[name]), shlex.join(setup.arguments()))
    console.print(table)
    arms = list(plan.arms())
    for kind in dict.fromkeys(arm.kind for arm in arms):
        same = [arm for arm in arms if arm.kind == kind]
        unit = "" if kind in ("probe", "measure") else " minutes" if plan.minutes else " steps"
        names = (f"{arm.name} {arm.length:g}{unit}" if unit else arm.name for arm in same)
        console.print(f"\n{kind}: {', '.join(names)}", soft_wrap=True)
    console.print(f"\n{len(arms)} in all, {duration(sum(map(plan.seconds, arms)))} by "
                  f"{'the clock' if plan.minutes else 'what FLOPs let expect'}")


def finish(plan: Plan, document: dict[str, Any], folder: Path, out: Path,
           console: Console) -> None:
    """Table, answer, pictures and page of all that is done. Raises `UserError` for nothing."""
    errors = [figures["error"] for figures in plan.found.values() if "error" in figures]
    if errors and not any("loss" in figures for figures in plan.found.values()):
        raise UserError(f"no training came to its end: {errors[-1]}")
    answer = plan.experiment.answer(plan)
    if plan.seeds == 1:
        answer += " With one seed, what is near may be chance."
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw(plan, folder, out)
    write_json(folder / "results.json", {**document, "arms": plan.found,
                                         "table": machine_rows(plan),
                                         "claims": claims.machine_rows(plan), "answer": answer})
    file = out / f"{document['about']['experiment']}.md"
    write_text(file, page(plan, document, answer, [picture.name for picture in pictures]))
    on_terminal(plan, answer, console)
    console.print(*dict.fromkeys([folder / "results.json", file, *pictures]), sep=", ",
                  soft_wrap=True)


if __name__ == "__main__":
    main_exit(main)
