"""The command that lets a trained run write: python generate/run.py --run NAME --prompt TEXT."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from generate.memory import Memory, digest, read_memory, write_memory
from generate.sampling import Sampler
from generate.text import Piece, Speed, write
from specs.backend import BACKENDS, load_backend
from specs.base import Spec
from specs.errors import UserError, main_exit
from train.rundir import RunDir

EXAMPLES = """examples:
  python generate/run.py --run bdh-demo --prompt "The meaning of "
  python generate/run.py --run bdh-demo --prompt "def " "class " --temperature 0   several at once
  python generate/run.py --run bdh-demo --backend torch --seed 7      the same text on both backends
  python generate/run.py --run bdh-demo --prompt "Q: why?" --stop $'\\n\\n' > answer.txt
  python generate/run.py --run bdh-demo --prompt "$(cat long.txt)" --save-state long.state
  python generate/run.py --run bdh-demo --load-state long.state --prompt " And then"

The prompts and what follows them go to stdout, remarks to stderr.
"""
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generate/run.py", epilog=EXAMPLES, description="Continue texts with a trained run.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Sampler()
    add = parser.add_argument
    add("--run", required=True, metavar="NAME", help="a folder under runs/, or its path")
    add("--step", type=int, metavar="N", help="the checkpoint of this step (default: the last)")
    add("--prompt", nargs="+", action="extend", metavar="TEXT",
        help="texts to continue, all in one batch (default: none, the model begins a line)")
    add("--max-tokens", type=int, default=200, metavar="N", help="length of each text (200)")
    add("--stop", nargs="+", action="extend", default=[], metavar="TEXT",
        help="end a text before any of these")
    add("--save-state", type=Path, metavar="FILE",
        help="keep what the model remembers of the text, for either backend to go on")
    add("--load-state", type=Path, metavar="FILE",
        help="go on with the text that FILE was saved after, without reading it again")

    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add("--temperature", type=float, default=default.temperature, metavar="T",
        help="below 1 more careful, above 1 wilder, 0 always the likeliest (%(default)s)")
    add("--top-k", type=int, default=default.top_k, metavar="K",
        help="only the K likeliest tokens (%(default)s: all)")
    add("--top-p", type=float, default=default.top_p, metavar="P",
        help="only the likeliest tokens that reach probability P together (%(default)s: all)")
    add("--min-p", type=float, default=default.min_p, metavar="P",
        help="only tokens at least P times as likely as the likeliest (%(default)s: all)")
    add("--repetition-penalty", type=float, default=default.repetition_penalty, metavar="R",
        help="above 1: what was there already becomes less likely (%(default)s: no change)")
    add("--seed", type=int, default=default.seed, metavar="N",
        help="another seed, another text (%(default)s)")

    group = parser.add_argument_group("where it runs")
    add = group.add_argument
    add("--backend", metavar="|".join(BACKENDS), help="default: mlx where it is installed")
    add("--device", help="cpu, gpu (MLX), cuda, cuda:1, mps (default: the best one here)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"),
        help="what products are computed in (%(default)s)")
    add("--state", default="auto", metavar="auto|cache|recurrent",
        help="what decoding remembers: all tokens, or a state of constant size; both are exact "
             "(%(default)s: the smaller one)")
    return parser


def main() -> int:
    args = parser().parse_args()
    sampler = Sampler(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
                      min_p=args.min_p, repetition_penalty=args.repetition_penalty,
                      seed=args.seed)
    run = RunDir.open(args.run)
    spec, tokenizer = run.spec, run.tokenizer()
    if args.state != "auto":
        spec.check_decode_kind(args.state)
    backend = load_backend(args.backend, args.device)
    weights = run.weights(args.step)
    memory, identity = None, ""
    if args.save_state or args.load_state:
        identity = digest(spec, weights)
        memory = remembered(args, spec, identity)
    model = backend.build(spec, weights, args.dtype)
    prompts, speed = args.prompt or [""], Speed()
    pieces = write(backend, model, tokenizer, prompts, sampler, args.max_tokens, args.stop,
                   args.state, speed, spec.max_length, memory)

    remarks = Console(stderr=True, style="dim", highlight=False, soft_wrap=True)
    finished = show(prompts, pieces)
    remarks.print(f"{run.name} on {backend.name} ({backend.device}, {args.dtype}): {speed}")
    if memory and finished and args.save_state:
        write_memory(args.save_state, memory, identity)
        remarks.print(f"{args.save_state}: {memory.read:,} tokens of this text are remembered")
    return 0 if finished else 130


def remembered(args: argparse.Namespace, spec: Spec, identity: str) -> Memory:
    """The memory that is given; else one that holds nothing, and will not grow with the text
    where the architecture has such a state. Raises `UserError` for a file that cannot be used."""
    if args.save_state and not args.save_state.resolve().parent.is_dir():
        raise UserError(f"--save-state {args.save_state} must be a file in a folder that is there")
    if not args.load_state:
        return Memory(spec.decode_kinds[-1] if args.state == "auto" else args.state)
    memory = read_memory(args.load_state, identity)
    if args.state not in ("auto", memory.kind):
        raise UserError(f"--state {args.state}: {args.load_state} holds the state {memory.kind!r}; "
                        "leave --state out")
    return memory


def show(prompts: list[str], pieces: Iterator[Piece]) -> bool:
    """Print each prompt with its text: the first as it grows, the next from where it has got to.

    Ctrl-C ends all of them where they are; then the answer is False.
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    screen = Console(highlight=False)
    waiting: list[deque[Piece]] = [deque() for _ in prompts]
    finished = True
    for row, prompt in enumerate(prompts):
        screen.out("\n" * (row > 0) + prompt, style="bold", end="", highlight=False)
        finish = None
        while not finish:
            if waiting[row]:
                text, finish = waiting[row][0].text, waiting[row].popleft().finish
                sys.stdout.write(text.translate(_VISIBLE) if screen.is_terminal else text)
                sys.stdout.flush()
                continue
            try:
                piece = next(pieces, None)
            except KeyboardInterrupt:
                piece, finished = None, False
            if piece is None:
                break
            waiting[piece.row].append(piece)
        print()
    return finished


if __name__ == "__main__":
    main_exit(main)
