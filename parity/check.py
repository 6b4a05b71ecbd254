"""The command that proves that both panels are the same model: python parity/check.py."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from parity.cases import lively_weights, random_spec
from parity.ladder import RUNGS
from parity.oracle import Oracle, read_oracle, reproduce
from parity.report import Report, as_json
from parity.side_by_side import climbing
from parity.subject import Subject, is_small, load_panels
from specs import Spec, UserError, architectures, main_exit, spec_type
from specs.backend import Arrays
from specs.base import did_you_mean, parse_field
from train.files import require_file, write_json
from train.rundir import RunDir

EXAMPLES = f"""rungs, in order:
  {', '.join(RUNGS)}

examples:
  python parity/check.py
  python parity/check.py --arch bdh --set window=7 --set share_layers=false
  python parity/check.py --arch bdh --rungs logits,gradients --json parity.json
  python parity/check.py --arch bdh --random 20
  python parity/check.py --run bdh-demo
  python parity/check.py --oracle tests/data/oracles/bdh.npz

The referee is PyTorch in float64 on the CPU. Errors are shown over their budget: how far the
referee's result moves when all weights move by eight units of float32 roundoff. Above 1 is a
mismatch, and the first module that parts is named. exit code: 0 all the same, 1 a mismatch,
2 bad input.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="parity/check.py", epilog=EXAMPLES, allow_abbrev=False,
        description="Check that the MLX and the PyTorch panel compute the same, rung by rung.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--arch", nargs="+", metavar="NAME", default=None,
                      help=f"all (default), or some of: {', '.join(architectures())}")
    made.add_argument("--preset", help="a named size (default: tiny); an unknown name lists them")
    made.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[],
                      help="any field of the spec; may be repeated")
    made.add_argument("--random", type=int, metavar="N", default=0,
                      help="check N random odd specs of each architecture instead")
    made.add_argument("--rungs", help="some of the rungs, separated by commas (default: all)")
    made.add_argument("--run", metavar="NAME", help="the weights of a trained run")
    made.add_argument("--step", type=int, help="of the run's checkpoint (default: the last)")
    made.add_argument("--oracle", type=Path, metavar="FILE.npz",
                      help="figures that an original implementation produced")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    made.add_argument("--seed", type=int, default=0, help="of weights and tokens (default: 0)")
    return made


def main() -> int:
    args = parser().parse_args()
    check_options(args)
    rungs = chosen_rungs(args.rungs)
    models = list(chosen_models(args))
    panels = load_panels(small=all(is_small(spec) for _, spec, *_ in models))
    subjects = [Subject(spec, weights, panels, panels["torch"], args.seed)
                for _, spec, weights, _ in models]
    report, documents, ok = Report(Console()), [], True
    report.panels(panels)
    with climbing(subjects, rungs) as climbs:
        for (title, *_, oracle), subject, climb in zip(models, subjects, climbs, strict=True):
            report.head(title, subject)
            with report.console.status("climbing …"):
                results = [report.row(result) for result in (
                    reproduce(subject, oracle) if oracle else climb)]
            documents.append(as_json(title, subject, results))
            ok = ok and all(result.ok for result in results)
    report.end(ok)
    if args.json:
        versions = {"python": platform.python_version(), "numpy": np.__version__,
                    **{name: panel.versions() for name, panel in panels.items()}}
        write_json(args.json, {"versions": versions, "ok": ok, "models": documents})
    return 0 if ok else 1


def check_options(args: argparse.Namespace) -> None:
    """Raise `UserError` for options that contradict each other."""
    sources = {"--run": args.run, "--oracle": args.oracle, "--arch": args.arch,
               "--preset": args.preset, "--set": args.set, "--random": args.random}
    given = [name for name, value in sources.items() if value]
    allowed = {"--run": {"--run"}, "--oracle": {"--oracle"}, "--random": {"--random", "--arch"}}
    for name, beside in allowed.items():
        other = next((other for other in given if name in given and other not in beside), None)
        if other:
            raise UserError(f"{name} and {other} exclude each other: leave one out")
    if args.step is not None and not args.run:
        raise UserError("--step is of a run's checkpoint: give --run NAME too")
    if args.oracle and args.rungs:
        raise UserError("--rungs and --oracle exclude each other: leave one out")
    if args.random < 0:
        raise UserError(f"--random {args.random} must be at least 1")
    if args.json:
        require_file(args.json, "--json")


def chosen_rungs(text: str | None) -> list[str]:
    names = text.split(",") if text else list(RUNGS)
    for name in names:
        if name not in RUNGS:
            raise UserError(f"no rung {name!r}" + did_you_mean(name, list(RUNGS)))
    return names


def chosen_models(args: argparse.Namespace) -> Iterator[tuple[str, Spec, Arrays, Oracle | None]]:
    """(title, spec, weights, oracle or None) of each model to check.

    By default of each architecture its preset "tiny", and an odd relative of it.
    Raises `UserError` for weights that are no numbers.
    """
    for title, spec, weights, oracle in given_models(args):
        for name, value in weights.items():
            if not np.isfinite(value).all():
                raise UserError(f"{title}: {name} holds numbers that are not finite; there is "
                                "nothing to compare: try an earlier --step")
        yield title, spec, weights, oracle


def given_models(args: argparse.Namespace) -> Iterator[tuple[str, Spec, Arrays, Oracle | None]]:
    if args.oracle:
        oracle = read_oracle(args.oracle)
        yield f"{oracle.spec.arch}, {oracle.source}", oracle.spec, oracle.weights, oracle
    elif args.run:
        run = RunDir.open(args.run)
        yield f"run {run.name}", run.spec, run.weights(args.step), None
    else:
        names = args.arch if args.arch and args.arch != ["all"] else architectures()
        for arch in names:
            for title, spec in chosen_specs(arch, args):
                yield f"{arch} {title}", spec, lively_weights(spec, args.seed), None


def chosen_specs(arch: str, args: argparse.Namespace) -> Iterator[tuple[str, Spec]]:
    if not args.random:
        # Dropout acts where a batch has keys for it, so it can be on in every small model.
        fields = {**({} if args.preset else {"dropout": 0.1}), **dict(map(parse_field, args.set))}
        title = " ".join([args.preset or "tiny", *args.set])
        yield title, spec_type(arch).preset(args.preset or "tiny", **fields)
    for seed in range(args.seed, args.seed + (args.random or not (args.preset or args.set))):
        yield f"odd, seed {seed}", random_spec(arch, seed)


if __name__ == "__main__":
    main_exit(main)
