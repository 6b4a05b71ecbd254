"""The command line of train/run.py, which becomes a spec and settings."""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import Any, get_args

from specs import Spec, UserError, architectures, spec_type
from specs.backend import BACKENDS, Attention
from specs.base import parse_field
from train.rundir import RunDir
from train.schedule import SCHEDULES
from train.settings import Settings

EXAMPLES = """examples:
  python train/run.py --backend mlx --arch bdh
  python train/run.py --arch bdh --preset 10m --data novel.txt --tokenizer bpe:4096 --minutes 30
  python train/run.py --arch bdh --set n_layer=8 --set share_layers=false --optimizer muon --lr 5e-3
  python train/run.py --arch bdh --preset 25m --batch-size 32 --memory 8GB --recompute
  python train/run.py --arch bdh --data roneneldan/TinyStories --stream --data-tokens 20M
  python train/run.py --resume bdh-demo --backend torch --steps 2000
"""

DEFAULT_STEPS = 300

# What may be changed when a run goes on: nothing here alters the batches or the model.
RESUMABLE = {"steps", "minutes", "lr", "min_lr", "grad_clip", "micro_batch", "memory", "dtype",
             "recompute", "attention", "compile", "log_every", "eval_every", "eval_windows",
             "save_every", "keep"}


_MOST = 1e15  # of tokens and bytes: more than there are


def option(group: Any, name: str, help: str, default: Any = None, **kind: Any) -> None:
    """Add the option of a setting; `default`: where it is another than the setting's own."""
    field = Settings.__dataclass_fields__.get(name[2:].replace("-", "_"))
    value = field.default if default is None and field is not None else default
    shown = f" (default {value})" if value not in (None, False) else ""
    group.add_argument(name, help=help + shown, **kind)


def data_options(made: argparse.ArgumentParser, tokenizer: str) -> None:
    """What is trained on; `tokenizer`: the help of that option."""
    data = made.add_argument_group("data")
    option(data, "--data", "builtin, builtin-source, a file, a folder, or a `datasets` id")
    option(data, "--data-config", "configuration of a `datasets` id")
    option(data, "--data-split", "split of a `datasets` id")
    option(data, "--text-column", "column that holds the text (default: found by itself)")
    option(data, "--stream", "read a `datasets` id without downloading it whole",
           action="store_true")
    option(data, "--data-tokens", "use at most so many tokens, such as 20M", type=_count)
    data.add_argument("--tokenizer", help=tokenizer)


def optimizer_options(made: argparse.ArgumentParser, lr: float | None = None) -> None:
    """How weights are moved, `lr`: the rate unless told otherwise."""
    optimizer = made.add_argument_group("optimizer")
    option(optimizer, "--optimizer", "Muon takes the hidden matrices, AdamW the rest",
           choices=("adamw", "muon"))
    option(optimizer, "--lr", "peak learning rate", lr, type=float)
    option(optimizer, "--beta1", "how much of its past AdamW's mean of the gradient keeps",
           type=float)
    option(optimizer, "--beta2", "how much that of its square keeps", type=float)
    option(optimizer, "--momentum", "how much of its past Muon's mean of the gradient keeps",
           type=float)
    option(optimizer, "--schedule", "after the warm-up", choices=SCHEDULES)
    option(optimizer, "--warmup", "updates of linear warm-up (default: 50, or a tenth of a short "
           "run)", type=int)
    option(optimizer, "--min-lr", "last rate as a share of the peak", type=float)
    option(optimizer, "--weight-decay", "decoupled, on matrices only", type=float)
    option(optimizer, "--grad-clip", "largest gradient norm, 0 for none", type=float)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="train/run.py", description="Train a model, on MLX or PyTorch, or go on with a run.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS, allow_abbrev=False)

    model = made.add_argument_group("model")
    model.add_argument("--arch", default=None, help=f"one of: {', '.join(architectures())}")
    model.add_argument("--preset", default=None, help="a named size (default: demo); an unknown "
                       "name lists them")
    model.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[],
                       help="any field of the spec; may be repeated")
    model.add_argument("--block-size", type=int, help="tokens in a window (default: the preset's)")
    option(model, "--init", "start from these weights: a safetensors file with our names, "
           "such as an official BDH state dict", metavar="FILE")

    run = made.add_argument_group("run")
    run.add_argument("--name", default=None, help="name under runs/ (default: ARCH-PRESET)")
    run.add_argument("--resume", metavar="NAME", default=None, help="go on with a run, on either "
                     "backend, with exactly the batches that come next")
    run.add_argument("--backend", default=None, help=f"{' or '.join(BACKENDS)} (default: mlx where "
                     "it is installed)")
    run.add_argument("--device", default=None, help="cpu, gpu (MLX), cuda, mps (PyTorch)")
    option(run, "--seed", "of weights, batches and dropout", type=int)

    data_options(made, "bytes, bpe:SIZE (trained on the training part), or a tokenizer.json "
                 f"(default {Settings.tokenizer})")

    length = made.add_argument_group(f"length (default: {DEFAULT_STEPS} steps)")
    option(length, "--steps", "optimizer updates", type=int)
    length.add_argument("--tokens", type=_count, help="tokens to see, such as 5M; becomes steps")
    option(length, "--minutes", "stop by the clock; the schedule follows it", type=float)

    batch = made.add_argument_group("batch")
    option(batch, "--batch-size", "windows per update", type=int)
    option(batch, "--micro-batch", "windows at once (default: all, or what --memory allows)",
           type=int)
    option(batch, "--memory", "choose the largest micro-batch that fits, such as 8GB", type=_size)
    option(batch, "--seq-curriculum", "grow windows over the first half of the run",
           metavar="64:256", type=_curriculum)

    optimizer_options(made)

    machine = made.add_argument_group("precision and speed")
    option(machine, "--dtype", "of the products; parameters and norms stay float32",
           choices=("float32", "bfloat16", "float16"))
    option(machine, "--recompute", "keep no activations inside a layer: less memory, more work",
           action=argparse.BooleanOptionalAction)
    option(machine, "--attention", "softmax attention by the framework's fused kernel, with all "
           "scores at once, or in blocks for long windows", choices=get_args(Attention))
    option(machine, "--compile", "torch.compile or mx.compile",
           action=argparse.BooleanOptionalAction)

    watch = made.add_argument_group("log points and checkpoints (in steps)")
    option(watch, "--log-every", "metrics line and progress", type=int)
    option(watch, "--eval-every", "validation", type=int)
    option(watch, "--eval-windows", "windows of a validation", type=int)
    option(watch, "--save-every", "checkpoint", type=int)
    option(watch, "--keep", "last checkpoints kept, besides the best", type=int)
    return made


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given on the command line."""
    names = {field.name for field in dataclasses.fields(Settings)}
    return {name: value for name, value in vars(args).items() if name in names}


def new_spec(args: argparse.Namespace, vocab_size: int) -> tuple[Spec, str]:
    """The spec asked for and the name of its preset; the vocabulary is the tokenizer's, the
    window by default that of the curriculum's end."""
    kind = spec_type(args.arch)
    preset = args.preset or "demo"
    fields = {"vocab_size": vocab_size, **dict(map(parse_field, args.set))}
    last = args.seq_curriculum[1] if "seq_curriculum" in args else None
    if last is not None:
        fields["block_size"] = last
    if "block_size" in args:
        fields["block_size"] = args.block_size
    spec = kind.preset(preset, **fields)
    if spec.vocab_size < vocab_size:
        raise UserError(f"vocab_size = {spec.vocab_size} is too small for the tokenizer, which "
                        f"has {vocab_size}")
    if last is not None and spec.block_size != last:
        raise UserError(f"--seq-curriculum ends at {last}, the window has {spec.block_size} "
                        "tokens: leave --block-size out, or make them equal")
    return spec, preset


def one_bound(args: argparse.Namespace, curriculum: bool) -> str | None:
    """Which of --steps, --tokens and --minutes was given; `UserError` for two of them, and for
    minutes where windows grow."""
    bounds = [name for name in ("steps", "tokens", "minutes") if name in args]
    if len(bounds) > 1:
        raise UserError(f"--{bounds[0]} and --{bounds[1]} both bound the run: give one of them")
    if bounds == ["minutes"] and curriculum:
        raise UserError("--seq-curriculum goes by steps: give --steps or --tokens, not --minutes")
    return bounds[0] if bounds else None


def new_settings(args: argparse.Namespace) -> Settings:
    """Settings of a new run; --tokens becomes steps by `with_tokens`, once the spec is known."""
    bound = one_bound(args, "seq_curriculum" in args)
    steps = {} if bound in ("steps", "minutes") else {"steps": DEFAULT_STEPS}
    return Settings(**{**steps, **given_settings(args)})


def with_tokens(args: argparse.Namespace, settings: Settings, block_size: int) -> Settings:
    return settings.for_tokens(args.tokens, block_size) if "tokens" in args else settings


def resumed_settings(args: argparse.Namespace, run: RunDir) -> Settings:
    """Settings of a run that goes on. Raises `UserError` for what would make it another run."""
    given, settings = given_settings(args), run.settings
    grows = settings.seq_curriculum is not None
    bound = one_bound(args, grows)
    fixed = sorted(name for name, value in given.items()
                   if name not in RESUMABLE and value != getattr(settings, name))
    fixed += [name for name in ("arch", "preset")
              if getattr(args, name) not in (None, run.config[name])]
    fixed += [name for name in ("name", "set", "block_size") if getattr(args, name, None)]
    if fixed:
        option = "--" + fixed[0].replace("_", "-")
        raise UserError(f"{option} cannot change when a run goes on: leave it out, or start "
                        "another run")
    begun, timed = run.steps() != [0], settings.steps is None
    if begun and bound is not None and (bound == "minutes") != timed:
        other = "minutes" if timed else "steps"
        raise UserError(f"this run is bounded by --{other}: give a larger --{other}")
    if bound is not None:
        given = {"steps": None, "minutes": None, **given}
    if "memory" in given:
        given.setdefault("micro_batch", None)
    made = with_tokens(args, dataclasses.replace(settings, **given), run.spec.block_size)
    if begun and grows and made.steps != settings.steps:
        raise UserError(f"--{bound} cannot change: windows grow over this run's {settings.steps} "
                        "steps (--seq-curriculum): leave it out, or start another run")
    return made


def _number(text: str, units: dict[str, int], what: str) -> int:
    match = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", text)
    unit = match[2].lower() if match else None
    if match is None or unit not in units:
        raise argparse.ArgumentTypeError(f"{text!r} must be {what}")
    try:
        number = float(match[1]) * units[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be {what}") from None
    if number > _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} must be {what}, at most {_MOST:g}")
    return int(number)


def _count(text: str) -> int:
    return _number(text, {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9},
                   "a number such as 500k, 20M or 1.5B")


def _size(text: str) -> int:
    return _number(text, {"mb": 2**20, "gb": 2**30, "m": 2**20, "g": 2**30},
                   "a size such as 800MB or 8GB")


def _curriculum(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} must be FIRST:LAST, such as 64:256")
    return int(match[1]), int(match[2])
