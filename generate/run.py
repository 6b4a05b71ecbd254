"""The command that lets a trained run write: python generate/run.py --run NAME --prompt TEXT."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from generate.batch import read_prompts, write_all
from generate.memory import Memory, digest, read_memory, write_memory
from generate.sampling import Sampler
from generate.screen import show
from generate.session import Session
from generate.text import Speed
from generate.writer import Writer
from specs.backend import BACKENDS, load_backend
from specs.base import Spec
from specs.errors import UserError, main_exit
from train.files import require_file
from train.rundir import RunDir

EXAMPLES = """examples:
  python generate/run.py --run bdh-demo                           in a terminal: a prompt line
  python generate/run.py --run bdh-demo --prompt "The meaning of "
  python generate/run.py --run bdh-demo --prompt "def " "class " --temperature 0   several at once
  python generate/run.py --run bdh-demo --backend torch --seed 7      the same text on both backends
  python generate/run.py --run bdh-demo --prompt "Q: why?" --stop $'\\n\\n' > answer.txt
  python generate/run.py --run bdh-demo --prompt "$(cat long.txt)" --save-state long.state
  python generate/run.py --run bdh-demo --load-state long.state --prompt " And then"
  python generate/run.py --run bdh-demo --prompts-file many.txt --out results.jsonl

Without a prompt a terminal gets a prompt line (/help there lists its commands), anything else a
text that begins a line. Prompts in a file are lines, or lines of JSON, {"prompt": TEXT}, if its
name ends in .jsonl; each result is a line of JSON, and the same command goes on where it was
stopped. The prompts and what follows them go to stdout, remarks to stderr.
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generate/run.py", epilog=EXAMPLES, description="Continue texts with a trained run.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Sampler()
    add = parser.add_argument
    add("--run", required=True, metavar="NAME", help="a folder under runs/, or its path")
    add("--step", type=int, metavar="N", help="the checkpoint of this step (default: the last)")
    prompts = parser.add_mutually_exclusive_group().add_argument
    prompts("--prompt", nargs="+", action="extend", metavar="TEXT",
            help="texts to continue, all in one batch")
    prompts("--prompts-file", type=Path, metavar="FILE", help="texts to continue, one a line")
    add("--out", type=Path, metavar="FILE", help="write the results there, a line of JSON each")
    add("--batch-size", type=int, default=16, metavar="N", help="prompts at once for --out (16)")
    add("--mode", choices=("interactive", "batch"),
        help="a prompt line, or prompts to a file (default: what the other options say)")
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
    add("--device", help="cpu, gpu (MLX), cuda, cuda:1, mps (default: gpu or cuda where there is "
        "one)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"),
        help="what products are computed in (%(default)s)")
    add("--state", default="auto", metavar="auto|cache|recurrent|online",
        help="what decoding remembers: all tokens; a state of constant size; or, in hyena and "
             "toeplitz, all tokens and sums for those to come. All are exact (%(default)s: the "
             "smaller one, or the sums)")
    return parser


def main() -> int:
    args = parser().parse_args()
    mode = chosen_mode(args)
    sampler = Sampler(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
                      min_p=args.min_p, repetition_penalty=args.repetition_penalty,
                      seed=args.seed)
    prompts = read_prompts(args.prompts_file) if args.prompts_file else args.prompt or [""]
    run = RunDir.open(args.run)
    if args.state != "auto":
        run.spec.check_decode_kind(args.state)
    backend = load_backend(args.backend, args.device)
    step, weights = run.load(args.step)
    memory, identity = None, ""
    if args.save_state or args.load_state:
        identity = digest(run.spec, weights)
        memory = remembered(args, run.spec, identity)
    writer = Writer(run, (step, weights), backend, args.dtype, args.state)
    remarks = Console(stderr=True, style="dim", highlight=False, soft_wrap=True)
    if mode == "interactive":
        from generate.terminal import converse

        converse(Session(writer, sampler, args.max_tokens, tuple(args.stop), args.device))
        return 0
    if mode == "batch":
        try:
            new = write_all(writer, prompts, args.out, sampler, args.max_tokens, args.stop,
                            args.batch_size)
        except KeyboardInterrupt:
            remarks.print(f"stopped; the same command goes on where {args.out} ends")
            return 130
        remarks.print(f"{args.out}: {len(prompts):,} texts, {new:,} of them new")
        return 0

    speed = Speed()
    finished = show(prompts, writer.write(prompts, sampler, args.max_tokens, args.stop, speed,
                                          memory))
    remarks.print(f"{writer}: {speed}")
    if memory and finished and args.save_state:
        write_memory(args.save_state, memory, identity)
        remarks.print(f"{args.save_state}: {memory.read:,} tokens of this text are remembered")
    return 0 if finished else 130


def chosen_mode(args: argparse.Namespace) -> str:
    """"interactive", "batch" or "once". Raises `UserError` for options that do not go together."""
    given, states = args.prompt or args.prompts_file, args.save_state or args.load_state
    if args.mode == "batch" or args.prompts_file or args.out:
        if not given or not args.out:
            raise UserError("many texts need prompts and a file for them: give --prompts-file FILE "
                            "(or --prompt) and --out results.jsonl")
        if args.mode == "interactive" or states:
            raise UserError("--out goes with neither --mode interactive nor --save-state and "
                            "--load-state: leave one out")
        return "batch"
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if args.mode == "interactive" and (given or states or not terminal):
        raise UserError("--mode interactive needs a terminal, and no --prompt and no saved state: "
                        "texts are typed there")
    return "interactive" if terminal and not given and not states else "once"


def remembered(args: argparse.Namespace, spec: Spec, identity: str) -> Memory:
    """The memory that is given; else one that holds nothing, and will not grow with the text
    where the architecture has such a state. Raises `UserError` for a file that cannot be used."""
    if args.save_state:
        require_file(args.save_state, "--save-state")
    if not args.load_state:
        return Memory(spec.decode_kinds[-1] if args.state == "auto" else args.state)
    memory = read_memory(args.load_state, identity)
    if args.state not in ("auto", memory.kind):
        raise UserError(f"--state {args.state}: {args.load_state} holds the state {memory.kind!r}; "
                        "leave --state out")
    return memory


if __name__ == "__main__":
    main_exit(main)
