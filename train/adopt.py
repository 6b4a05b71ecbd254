"""Make a run of a model in Hugging Face format: `python train/adopt.py --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors

from specs import Spec, UserError, main_exit
from specs.backend import Arrays, fresh_state, settings_from
from train import checkpoint
from train.checkpoint import TrainState
from train.data import require_length, store
from train.neighbours import Folder, model_types, neighbour_of
from train.neighbours.folder import keep_origin, read_config, read_tensors
from train.options import DEFAULT_STEPS, data_options, given_settings, optimizer_options, option
from train.run import described, prepared, shown
from train.rundir import RunDir, require_new
from train.settings import Settings

LR = 1e-4  # trained weights bear less than new ones
WINDOW = 1024  # longest training window unless told otherwise

EXAMPLES = """examples:
  python train/adopt.py --from Qwen3-0.6B-Base --name qwen
  python generate/run.py --run qwen --prompt "The "
  python parity/check.py --run qwen --rungs parameters,logits
  python train/adopt.py --from gpt2 --name mine --data novel.txt --batch-size 4 --lr 3e-5
  python train/run.py --resume mine --steps 300
  python train/export.py --run mine --to hf gpt2-mine

DIR is what `save_pretrained` writes, or a model's files from the hub: config.json, safetensors,
tokenizer.json. The data are what the run will be trained on, if it is; for how long, in what
micro-batches and precision, and when it is validated and saved is said on resuming.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="train/adopt.py", epilog=EXAMPLES, allow_abbrev=False,
        description="Make a run of a model in Hugging Face format, which generates, is checked and "
        f"is trained like any other. Its model_type is one of: {', '.join(model_types())}.",
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    made.add_argument("--from", dest="source", required=True, metavar="DIR", type=Path,
                      help="a folder with config.json and safetensors")
    made.add_argument("--name", default=None, help="name under runs/ (default: ARCH-adopted)")
    made.add_argument("--block-size", type=int, default=None, help="tokens in a training window "
                      f"(default: the model's own, at most {WINDOW})")
    data_options(made, "another than the folder's: bytes, or a tokenizer.json")
    batch = made.add_argument_group("batch")
    option(batch, "--batch-size", "windows per update", type=int)
    option(batch, "--seed", "of batches and dropout", type=int)
    optimizer_options(made, LR)
    return made


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    require_new(args.name)
    source, given = args.source, given_settings(args)
    spec, weights = read(source)
    spec = with_window(spec, args.block_size)
    own = "tokenizer" not in given
    settings = Settings(**{"steps": 0, "lr": LR, "init": str(source),
                           "tokenizer": str(source / "tokenizer.json"), **given})
    if own and not (source / "tokenizer.json").is_file():
        raise UserError(f"{source} has no tokenizer.json: give --tokenizer, or let transformers "
                        "write one with AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)")
    corpus, tokenizer = prepared(settings)
    if tokenizer.vocab_size > spec.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows "
                        f"{spec.vocab_size}: give --tokenizer with the one it was trained with")
    require_length(corpus, spec.block_size)
    versions = {"numpy": np.__version__, "safetensors": safetensors.__version__}

    def fill(folder: Path) -> None:
        store(corpus, folder)
        if own:
            keep_origin(source, folder / "origin")
        checkpoint.save(folder, TrainState(), weights,
                        fresh_state(spec, settings_from(settings.to_dict())), versions)

    run = RunDir.create(args.name, spec, settings, "adopted", tokenizer, described(corpus),
                        versions, fill)
    say(f"{run.path}: {spec.arch}, {spec.param_count():,} parameters of {source}; windows of "
        f"{spec.block_size} tokens of {corpus.source}")
    say(f"generate:  python {shown('generate/run.py')} --run {run.name} --prompt 'The '")
    say(f"go on:     python {shown('train/run.py')} --resume {run.name} --steps {DEFAULT_STEPS}")
    return 0


def read(source: Path) -> tuple[Spec, Arrays]:
    """Spec and weights of a folder. Raises `UserError` for one that cannot be a run of ours."""
    config = read_config(source)
    with naming(source):
        module = neighbour_of(config.get("model_type"))
    folder = Folder(config, read_tensors(source))
    with naming(source):
        return module.from_upstream(folder)


@contextmanager
def naming(source: Path) -> Iterator[None]:
    """Say which folder a `UserError` is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source} cannot be adopted: {error}") from None


def with_window(spec: Spec, block_size: int | None) -> Spec:
    """`spec` with this training window. Raises `UserError` where its parameters decide it."""
    if spec.max_length is None:
        return spec.replace(block_size=block_size or min(spec.block_size, WINDOW))
    if block_size not in (None, spec.block_size):
        raise UserError(f"--block-size {block_size}: this model has learned {spec.block_size} "
                        "positions, leave the option out")
    return spec


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main_exit(main)
