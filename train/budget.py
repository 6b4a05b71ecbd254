"""The best model for a sum of money or a number of hours: `python train/budget.py --help`."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from specs import UserError, architectures, main_exit
from specs.base import did_you_mean
from train import metrics
from train.devices import DEVICES, Device
from train.numerals import short
from train.optimum import FITS, RESERVE, Plan, batch_tokens, best, largest, peak_lr, sizes
from train.rundir import RunDir

EXAMPLES = """examples:
  python train/budget.py --budget 5                          $5 of one H100
  python train/budget.py --budget 5 --compare                the same on each device for rent
  python train/budget.py --hours 12 --gpu m4-max --arch bdh  a night on your own Mac
  python train/budget.py --budget 20 --gpu b200 --run gpt-demo   with the MFU that a run has reached

How it reckons: money buys hours, hours buy FLOPs (the device's published rate times the MFU, the
share of it that training reaches), and FLOPs buy tokens times what a token costs, by the spec's own
count. A larger model sees fewer tokens. Chinchilla's law says how low the loss of each would be:
the lowest is best. What does not fit into the device's memory is left out, and said: weights,
gradients, optimizer and activations of one window, counted from the parameter table, which is the
least; the printed line finds the micro-batch that really fits (--memory).

The MFU decides as much as the device does. 0.4 is what well-tuned large runs reach (PaLM: 0.46,
arXiv 2204.02311); small models stay below it: measure your own (--run). A run's MFU refers to the
matrix-product rate that was measured on its machine, which is below the published one.
"""
TEXT = "HuggingFaceFW/fineweb-edu"  # in samples of so many billion tokens:
READING, WAITING = 6, 8  # bytes a token, in memory and on the disk, while text is made into tokens
SAMPLES = {10e9: "sample-10BT", 100e9: "sample-100BT", 350e9: "sample-350BT"}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="train/budget.py", epilog=EXAMPLES, allow_abbrev=False,
        description="Find the model and the number of tokens that make the most of a sum of money "
        "or a number of hours.", formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--budget", type=float, metavar="DOLLARS", help="what may be spent")
    add("--hours", type=float, metavar="H", help="how long it may take; with --budget the less of "
        "both")
    add("--gpu", default="h100", metavar="NAME",
        help=f"one of: {', '.join(DEVICES)} (%(default)s)")
    add("--compare", action="store_true", help="all of them, side by side")
    add("--price", type=float, metavar="DOLLARS", help="an hour's rent of the --gpu, if you know "
        "better")
    add("--mfu", type=float, metavar="SHARE", help="of the published rate (0.4)")
    add("--run", metavar="NAME", help="take the MFU that this run has reached")

    group = made.add_argument_group("what is trained")
    add = group.add_argument
    add("--arch", default="gpt", help=f"one of: {', '.join(architectures())} (%(default)s)")
    add("--preset", metavar="NAME", help="whose form the model has (default: the largest one)")
    add("--block-size", type=int, default=1024, metavar="T",
        help="tokens in a window (%(default)s)")
    add("--vocab-size", type=int, default=32768, metavar="V", help="of a BPE (%(default)s)")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="(%(default)s)")
    add("--data", metavar="TEXT", help="for the printed command: as train/run.py takes it "
        f"(default: {TEXT})")
    add("--fit", default="besiroglu", choices=FITS, help="of Chinchilla's law (%(default)s)")
    return made


@dataclass(frozen=True)
class Offer:
    """What a device gives for the money or the hours: the best model of all (`free`), and the
    best that it can hold (None: it can hold none)."""

    name: str
    device: Device
    hours: float
    flops: float
    free: Plan
    held: Plan | None


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    check(args)
    share, origin = utilisation(args)
    devices = DEVICES if args.compare else {args.gpu: DEVICES[args.gpu]}
    if args.price:
        devices = {args.gpu: replace(devices[args.gpu], rent=args.price, rent_source="given")}
    offers = offers_of(devices, args, share)
    if not offers:
        raise UserError(f"no rent is known of {args.gpu}: give --hours, or --price for an hour")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    show(offers, console)
    offered = {offer.name for offer in offers}
    for name in devices:
        if name not in offered:
            console.print(f"{name}: no rent is known of it; give --hours, or --gpu {name} --price")
    console.print(f"MFU {share:.3g}, {origin}; {args.dtype}; loss by {FITS[args.fit].source}")
    for offer in offers:
        rent = f"${offer.device.rent:g} an hour, " if offer.device.rent else ""
        console.print(f"{offer.name}: {offer.device.name}; {offer.device.source}; "
                      f"rent: {rent}{offer.device.rent_source}")
    winner = min((offer for offer in offers if offer.held), key=lambda offer: loss_of(offer),
                 default=None)
    if winner is None:
        raise UserError(f"no {args.arch} of any size fits: take a smaller --block-size or another "
                        "--gpu")
    console.print(f"\nOn {winner.name}, {told(winner)}:\n{command(winner, args)}")
    if args.data is None:
        billions = text_tokens(winner) / 1e9
        console.print(f"While its text is made into tokens, this takes about "
                      f"{READING * billions:.3g} GB of the computer's own memory and "
                      f"{WAITING * billions:.3g} GB of its disk; with fewer --data-tokens it takes "
                      "less, and some text is seen again")
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise `UserError` for values that mean nothing."""
    if args.budget is None and args.hours is None:
        raise UserError("say what may be spent: --budget 5 (dollars), --hours 12, or both")
    for name in ("budget", "hours", "price", "mfu"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} {value:g} must be positive")
    if args.mfu is not None and args.mfu > 1:
        raise UserError(f"--mfu {args.mfu:g} must be a share of the published rate, at most 1")
    if args.vocab_size < 257:
        raise UserError(f"--vocab-size {args.vocab_size} must be at least 257, the smallest BPE")
    if args.gpu not in DEVICES:
        raise UserError(f"no device {args.gpu!r}" + did_you_mean(args.gpu, list(DEVICES)))
    for one, other in (("mfu", "run"), ("price", "compare")):
        if getattr(args, one) and getattr(args, other):
            raise UserError(f"--{one} and --{other} do not go together: leave one of them out")


def utilisation(args: argparse.Namespace) -> tuple[float, str]:
    """(MFU, where it is from). Raises `UserError` for a run that has not measured any."""
    if args.run is None:
        return (0.4, "assumed") if args.mfu is None else (args.mfu, "given")
    run = RunDir.open(args.run)
    shares = [row["mfu"] for row in metrics.read(run.metrics) if row.get("mfu")]
    if not shares:
        raise UserError(f"{run.name} has measured no MFU yet: train it first, or give --mfu")
    return median(shares[len(shares) // 2:]), f"measured by {run.name}"


def offers_of(devices: Mapping[str, Device], args: argparse.Namespace, share: float) -> list[Offer]:
    """What each device gives, but of those whose hours money cannot buy."""
    named, hours = [], []
    for name, device in devices.items():
        bounds = [] if args.hours is None else [args.hours]
        if args.budget is not None and device.rent:
            bounds.append(args.budget / device.rent)
        if bounds:
            named.append(name)
            hours.append(min(bounds))
    if not named:
        return []
    flops = [3600 * time * getattr(devices[name], args.dtype) * share
             for name, time in zip(named, hours, strict=True)]
    plans = best(sizes(args.arch, args.preset, block_size=args.block_size,
                       vocab_size=args.vocab_size, dropout=0.0), flops,
                 [RESERVE * devices[name].memory for name in named], FITS[args.fit],
                 args.dtype != "float32")
    return [Offer(name, devices[name], time, amount, free, held)
            for name, time, amount, (free, held) in zip(named, hours, flops, plans, strict=True)]


def loss_of(offer: Offer) -> float:
    return (offer.held or offer.free).loss


def show(offers: list[Offer], console: Console) -> None:
    """The offers, the best first, and what cannot be held."""
    table = Table("device", "hours", "FLOPs", "size", "shape", "tokens", "loss",
                  "memory ≥", box=SIMPLE_HEAD)
    offers = sorted(offers, key=loss_of)
    for offer in offers:
        plan = offer.held or offer.free
        table.add_row(
            offer.name, f"{offer.hours:.3g}", f"{offer.flops:.2e}",
            short(plan.spec.param_count()), f"{plan.spec.n_layer} × {plan.spec.n_embd}",
            short(plan.tokens), f"{plan.loss:.3f}",
            f"{plan.memory / 1e9:.3g} GB" + " *" * plan.recompute)
    console.print(table)
    if any((offer.held or offer.free).recompute for offer in offers):
        console.print("* recomputing activations, which costs a third more time")
    for offer in offers:
        if offer.held is not offer.free:
            console.print(
                f"{offer.name}: its {offer.device.memory / 1e9:.0f} GB cannot hold the best model, "
                f"{short(offer.free.spec.param_count())} parameters, whose training takes at least "
                f"{offer.free.memory / 1e9:.3g} GB (weights, gradients, optimizer, activations)"
                + ("" if offer.held else ", nor any smaller one"))


def told(offer: Offer) -> str:
    """What the numbers of an offer come to."""
    plan = offer.held or offer.free
    rate = offer.device.bandwidth / plan.spec.decode_traffic(plan.spec.block_size)
    return (f"{plan.tokens / plan.spec.param_count():.3g} tokens for each parameter; its bandwidth "
            f"then lets it write at most {rate:,.0f} tokens/s in float32")


def text_tokens(offer: Offer) -> float:
    """Tokens of text, of which a tenth is held out."""
    return (offer.held or offer.free).tokens / 0.9


def command(offer: Offer, args: argparse.Namespace) -> str:
    """The line that trains this model."""
    plan = offer.held or offer.free
    spec = plan.spec
    updates = max(1, round(batch_tokens(offer.flops) / spec.block_size))
    words = ["python", "train/run.py", "--backend", offer.device.backend, "--arch", args.arch,
             "--preset", args.preset or largest(args.arch), "--block-size", spec.block_size]
    fields: dict[str, Any] = {**plan.fields, "dropout": 0.0}
    for name, value in fields.items():
        words += ["--set", f"{name}={value}"]
    words += ["--data", args.data or TEXT]
    if args.data is None:
        enough = [name for size, name in SAMPLES.items() if size >= plan.tokens]
        words += ["--data-config", enough[0] if enough else "default", "--stream",
                  "--data-tokens", counted(text_tokens(offer))]
    words += ["--tokenizer", f"bpe:{args.vocab_size}", "--tokens", counted(plan.tokens),
              "--batch-size", updates, "--memory", f"{RESERVE * offer.device.memory / 2**30:.3g}GB",
              "--lr", f"{peak_lr(offer.flops):.2g}", "--dtype", args.dtype]
    words += ["--recompute"] * plan.recompute + ["--compile"] * (offer.device.backend == "torch")
    return shlex.join(map(str, words))


def counted(tokens: float) -> str:
    """A number of tokens as train/run.py reads it."""
    return f"{tokens / 1e6:.1f}M" if tokens >= 1e7 else f"{tokens:.0f}"


if __name__ == "__main__":
    main_exit(main)
