"""Our two panels against transformers and mlx_lm: the same model, trained, read and decoded.

python bench/neighbours.py
python bench/neighbours.py --arch mamba2 --seq 512
python bench/neighbours.py --set n_layer=4 --batch 4

Each contestant lives in a process of its own, and they take turns by the second: one step, one
reading, a few tokens each, so that all of a round see the same machine. Two turns are not counted.
Shown are medians over the rounds, and how many times as fast as the neighbour of its framework,
round by round, a panel is: "torch" to "transformers", "mlx" to "mlx_lm"; "-compiled" where the
framework compiles the step. The neighbour loads what `train/export.py` would write. The bound is
the best matrix-product rate (training, reading) and bandwidth (decoding) that one of them reached.
Reading is the time to the first token after a prompt of a window's length.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.again import RESULTS
from specs import UserError, init_weights, main_exit, spec_type
from specs.backend import Batch, OptimizerSettings, available_backends, load_backend
from specs.base import Spec, parse_field
from specs.machine import chip
from train.checkpoint import save_arrays
from train.files import write_json
from train.neighbours import neighbour
from train.study.timing import WARM, in_turn, quartiles

NEIGHBOURS = {"torch": "transformers", "mlx": "mlx_lm"}
PROMPT, DECODED = 64, 24  # tokens read before decoding, tokens of a turn
# The sizes of the figures in docs/speed.md: a vocabulary of bytes, one window's length.
FORMS: dict[str, Mapping[str, Any]] = {
    "gpt": {"vocab_size": 256, "block_size": 1024, "n_layer": 6, "n_embd": 384, "n_head": 6,
            "norm": "rmsnorm", "pos": "rope", "mlp": "swiglu", "d_ff": 1024},
    "moe": spec_type("moe").presets["mixtral"],
    "mla": spec_type("mla").presets["deepseek-v2"],
    "mamba2": {"n_layer": 4},
    "rwkv7": {"n_layer": 4, "n_embd": 256},
}
BATCHES = {"gpt": 8, "moe": 4, "mla": 4, "mamba2": 2, "rwkv7": 2}
LACKS = {"rwkv7": "transformers"}
KINDS = "train", "read", "decode"


def main() -> None:
    who = [f"{name}{form}" for panel in available_backends()
           for name in (panel, NEIGHBOURS[panel]) for form in ("", "-compiled")]
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=sorted(FORMS), default="gpt")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", dest="fields",
                        help="change the model from the one of docs/speed.md")
    parser.add_argument("--who", nargs="+", choices=who, metavar="NAME",
                        help=f"of {', '.join(who)} (all that have the architecture)")
    parser.add_argument("--batch", type=int, help="windows per training step "
                        f"({', '.join(f'{arch} {batch}' for arch, batch in BATCHES.items())})")
    parser.add_argument("--seq", type=int, default=256, help="tokens per window (256)")
    parser.add_argument("--rounds", type=int, default=8, help="at least 2 (8)")
    args = parser.parse_args()
    args.batch = BATCHES[args.arch] if args.batch is None else args.batch
    if args.batch < 1 or args.seq < 1 or args.rounds < 2:
        raise UserError("--batch and --seq must be positive, and --rounds at least 2")
    args.who = args.who or [name for name in who if name.split("-")[0] != LACKS.get(args.arch)]
    spec = spec_type(args.arch).from_dict(
        {**FORMS[args.arch], **dict(map(parse_field, args.fields))})
    if max(args.seq, behind(args.rounds)) > (spec.max_length or math.inf):
        raise UserError(f"the model reads no more than {spec.max_length} tokens: choose a smaller "
                        "--seq or --rounds, or --set block_size")
    found = measured(args, spec)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"neighbours-{args.arch}.json",
               {"chip": chip(), "spec": spec.to_dict(), "batch": args.batch, "seq": args.seq,
                "found": found})
    show(args, spec, found)


def measured(args: argparse.Namespace, spec: Spec) -> dict[str, dict[str, Any]]:
    """For each contestant tokens/s of all rounds by kind, peak bytes of training, and the FLOP/s
    and bytes/s that its framework reached."""
    tokens = {"train": args.batch * args.seq, "read": args.seq, "decode": DECODED}
    turns = len(KINDS) * len(args.who) * (WARM + args.rounds)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())
    found: dict[str, dict[str, Any]] = {name: {} for name in args.who}
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns, transient=True,
                                                console=Console(stderr=True)))
        bar = progress.add_task("", total=turns)
        asked = {name: stack.enter_context(Contestant(name, spec, args)) for name in args.who}

        def turn(name: str, kind: str) -> object:
            progress.update(bar, advance=1, description=f"{kind} {name}")
            return asked[name](kind)

        for kind in KINDS:
            works = {name: lambda name=name, kind=kind: turn(name, kind) for name in asked}
            for name, seconds in in_turn(works, (args.rounds, args.rounds)).items():
                found[name][kind] = [tokens[kind] / each for each in seconds]
            if kind == "train":
                for name, ask in asked.items():
                    found[name]["peak"] = ask("peak")
        for name, ask in asked.items():
            found[name] |= {rate: ask(rate) for rate in ("flops", "bandwidth")}
    return found


class Contestant:
    """A process that does what it is asked for: one of `KINDS`, "peak", "flops" or "bandwidth"."""

    def __init__(self, name: str, spec: Spec, args: argparse.Namespace):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, daemon=True, args=(
            there, name, spec.arch, spec.to_dict(), args.batch, args.seq))
        self.process.start()
        there.close()

    def __call__(self, what: str) -> Any:
        """Once it is done, what came of it. Raises `UserError` where the process ended."""
        try:
            self.pipe.send(what)
            return self.pipe.recv()
        except (EOFError, OSError):
            raise UserError(f"{self.name} ended: see above, or is there enough memory?") from None

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join()


def serve(asked: Any, name: str, arch: str, fields: dict[str, Any], batch: int, seq: int) -> None:
    """Answer until nobody is there to ask: Ctrl-C is for who asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name, _, compiled = name.partition("-")
    panel = next(own for own, other in NEIGHBOURS.items() if name in (own, other))
    spec, backend = spec_type(arch).from_dict(fields), load_backend(panel)
    step, decode = contestant(name == panel, panel, spec, bool(compiled))
    rng = np.random.default_rng(0)
    rows = rng.integers(0, spec.vocab_size, (batch, seq + 1)).astype(np.int32)
    text = decode(rng.integers(0, spec.vocab_size, (1, PROMPT)).astype(np.int32))
    work = {"train": lambda: step(rows[:, :-1], rows[:, 1:]),
            "read": lambda: next(decode(rows[:1, :-1])),
            "decode": lambda: deque(islice(text, DECODED), 0),
            "peak": backend.peak_memory, "flops": backend.matmul_rate,
            "bandwidth": backend.bandwidth}
    try:
        while what := asked.recv():
            answer = work[what]()
            asked.send(answer if isinstance(answer, int | float) else None)
    except (EOFError, OSError):
        pass


def contestant(own: bool, panel: str, spec: Spec, compiled: bool) -> tuple[
        Callable[[np.ndarray, np.ndarray], object], Callable[[np.ndarray], Iterator[int]]]:
    """What trains one step, and what decodes greedily."""
    weights, backend = init_weights(spec), load_backend(panel)
    if not own:
        with tempfile.TemporaryDirectory() as folder:
            to = {"torch": "hf", "mlx": "mlx-lm"}[panel]
            content = neighbour(spec.arch).to_upstream(spec, weights, to)
            save_arrays(Path(folder) / "model.safetensors", content.tensors, "pt")
            write_json(Path(folder) / "config.json", content.config)
            on = {"device": backend.device} if panel == "torch" else {}  # MLX's is the process's
            made = import_module(f"{panel}_models.neighbour").Neighbour(
                Path(folder), compiled, **on)
        return made.step, made.decode
    model = backend.build(spec, weights)
    trainer = backend.trainer(model, OptimizerSettings(), compiled)

    def step(tokens: np.ndarray, targets: np.ndarray) -> object:
        trainer.step([Batch(tokens, targets)], 1e-4)
        return trainer.read()

    @cache
    def reader() -> Any:
        return backend.build(spec, weights) if compiled else model

    def decode(prompt: np.ndarray) -> Iterator[int]:
        decoder = backend.decoder(reader())
        logits = decoder.read(prompt)
        while True:
            tokens = logits.argmax(-1)
            yield int(tokens[0])
            logits = decoder.step(tokens)

    return step, decode


def show(args: argparse.Namespace, spec: Spec, found: dict[str, dict[str, Any]]) -> None:
    """Medians over the rounds, shares of the bound, and the ratios to the neighbour, round by
    round, with their quartiles."""
    table = Table("", "peak", *(title for kind in ("training", "reading", "decoding")
                                for title in (kind, "of bound", "times")),
                  box=None, title=f"{args.arch}, {spec.param_count():,} parameters, "
                  f"{args.batch} x {args.seq} tokens; medians (quartiles of times); {chip()}")
    for column in table.columns[1:]:
        column.justify = "right"
    flops, traffic = spec.flops_per_token(args.seq), spec.decode_traffic(behind(args.rounds // 2))
    best = {rate: max(each[rate] for each in found.values()) for rate in ("flops", "bandwidth")}
    bounds = {"train": best["flops"] / (3 * flops), "read": best["flops"] / flops,
              "decode": best["bandwidth"] / traffic}
    for name, each in found.items():
        plain, _, form = name.partition("-")
        other = found.get("-".join(filter(None, (NEIGHBOURS.get(plain), form))))
        cells = []
        for kind in KINDS:
            rates = each[kind]
            cells += [f"{median(rates):,.0f}", f"{median(rates) / bounds[kind]:.0%}",
                      times(rates, other[kind])
                      # What is compiled of ours is the training step alone.
                      if other and (kind == "train" or not form) else ""]
        table.add_row(name, f"{each['peak'] / 2**20:,.0f} MiB", *cells)
    Console(highlight=False, width=160).print(table)


def behind(rounds: int) -> int:
    """Tokens of the text that is decoded, after so many rounds."""
    return PROMPT + DECODED * (WARM + rounds)


def times(mine: list[float], others: list[float]) -> str:
    found = quartiles([one / other for one, other in zip(mine, others, strict=True)])
    return f"{found['middle']:.2f} ({found['low']:.2f}…{found['high']:.2f})"


if __name__ == "__main__":
    main_exit(main)
