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
import json
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
from train.options import data_options, given_settings
from train.run import described, prepared
from train.rundir import RUNS
from train.settings import Settings
from train.study.pictures import draw
from train.study.plan import Plan
from train.study.report import machine_rows, on_terminal, page, size
from train.study.runner import Runner, clock, locked
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
    """Raise `UserError` for numbers that cannot be."""
    if args.steps is not None and args.minutes is not None:
        raise UserError("--steps and --minutes both bound the trainings: give one of them")
    for name in ("steps", "minutes", "seeds"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value:g} must be positive")
    if any(not lr > 0 for lr in args.lr):
        raise UserError("--lr must be positive")


def planned(args: argparse.Namespace, folder: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan, and what must be the same when it goes on."""
    experiment = experiments.load(args.experiment)
    if Path(getattr(args, "data", "")).exists() and "data" in args:
        args.data = str(Path(args.data).resolve())
    given = given_settings(argparse.Namespace(**{
        name: value for name, value in vars(args).items()
        if name.startswith(("data", "text", "stream", "tokenizer"))}))
    corpus, tokenizer = prepared(Settings(**given))
    setups = experiment.setups(args.full, tokenizer.vocab_size)
    for name in args.only:
        if name not in setups:
            raise UserError(f"{args.experiment} has no setup {name!r}"
                            + did_you_mean(name, list(setups)))
    words = options(given)
    if not given.get("tokenizer", "bytes").startswith("bytes"):  # learnt once, used by all
        file = folder / "tokenizer.json"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, tokenizer.to_json())
        words = options({**given, "tokenizer": file.resolve()})
    steps = args.steps or (QUICK if args.quick else experiment.steps[args.full])
    plan = Plan(experiment, setups, steps, args.seeds or (1 if args.quick else 3), args.minutes,
                tokenizer.vocab_size, words, tuple(sorted(args.lr)), tuple(args.only))
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
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        other = [name for name, value in about.items() if found["about"].get(name) != value]
        if other:
            raise UserError(f"{file} was made with another {', '.join(other)}: choose another "
                            "--name, or delete that folder")
        plan.found.update(found["arms"])
        document["versions"] = found["versions"]
    return document


def show(plan: Plan, console: Console) -> None:
    """The setups and how they are trained, all trainings and how long they may take."""
    table = Table("setup", "parameters", "train/run.py", box=None)
    for name, setup in plan.setups.items():
        table.add_row(name, size(plan.specs[name]), shlex.join(setup.arguments()))
    console.print(table)
    arms = list(plan.arms())
    for arm in arms:
        if arm.kind != "probe":
            length = f"{arm.length:g} " + ("minutes" if plan.minutes and arm.length else "steps")
            console.print(f"  {arm.name}: {length}")
    kind = "that were given" if plan.minutes else "that FLOPs let expect"
    console.print(f"{len(arms)} of them, by the times {kind}: "
                  f"{clock(sum(map(plan.seconds, arms)))}")


def finish(plan: Plan, document: dict[str, Any], folder: Path, out: Path,
           console: Console) -> None:
    """Table, answer, pictures and page of all that is done."""
    answer = plan.experiment.answer(plan)
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw(plan, folder, out)
    write_json(folder / "results.json", {**document, "arms": plan.found,
                                         "table": machine_rows(plan), "answer": answer})
    file = out / f"{document['about']['experiment']}.md"
    write_text(file, page(plan, document, answer, [picture.name for picture in pictures]))
    on_terminal(plan, answer, console)
    console.print(*dict.fromkeys([folder / "results.json", file, *pictures]), sep=", ",
                  soft_wrap=True)


if __name__ == "__main__":
    main_exit(main)
