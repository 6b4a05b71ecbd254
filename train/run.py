"""Train a model, on MLX or PyTorch, or go on with a run: `python train/run.py --help`."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from specs import Spec, UserError, init_weights, main_exit
from specs.backend import Arrays, Backend, load_backend, load_strictly, settings_from
from train import checkpoint, metrics, plots
from train.batches import batch
from train.checkpoint import TrainState
from train.data import Corpus, find, prepare, require_length, store
from train.loop import Loop
from train.memory import micro_batch_for
from train.options import new_settings, new_spec, parser, resumed_settings
from train.rundir import RunDir
from train.settings import Settings


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.resume is None and args.arch is None:
        raise UserError("say what to train: --arch bdh, or --resume NAME to go on with a run")
    backend = load_backend(args.backend, args.device)
    with ExitStack() as locks:
        loop = (resume if args.resume else start)(args, backend, locks)
        ending = loop.train()
        drawn = plots.draw(loop.run.path)
    return report(loop, ending, f"; plots in {loop.run.plots}" if drawn else "")


def start(args: argparse.Namespace, backend: Backend, locks: ExitStack) -> Loop:
    """A new run, written down before its first step."""
    given = new_settings(args, block_size=1)  # checked before any text is read
    corpus, tokenizer = prepare(
        given.data, given.tokenizer, max_tokens=given.data_tokens, config=given.data_config,
        split=given.data_split, text_column=given.text_column, streaming=given.stream)
    spec, preset = new_spec(args, tokenizer.vocab_size)
    settings = new_settings(args, spec.block_size)
    require_length(corpus, longest(spec, settings))
    weights = init_weights(spec, settings.seed)
    if settings.init:
        source = load_strictly(spec, checkpoint.load_arrays(Path(settings.init)), settings.init)
        weights = {name: array.astype("float32") for name, array in source.items()}
    run = RunDir.create(args.name, spec, settings, preset, tokenizer, described(corpus),
                        backend.versions())
    store(corpus, run.path)
    locks.enter_context(run.lock())
    say(f"{run.path}: {spec.arch} {preset}, {spec.param_count():,} parameters, {backend.name} on "
        f"{backend.device}; {len(corpus.train):,} tokens of {corpus.source}")
    return make_loop(run, spec, settings, corpus, backend, weights, {}, TrainState())


def resume(args: argparse.Namespace, backend: Backend, locks: ExitStack) -> Loop:
    """A run from its last whole checkpoint."""
    run = RunDir.open(args.resume)
    locks.enter_context(run.lock())
    spec = run.spec
    settings = resumed_settings(args, run.settings, spec.block_size)
    state, (weights, optimizer), remarks = checkpoint.load_last(run.path)
    for remark in remarks:
        say(remark)
    if settings.steps is not None and state.step >= settings.steps:
        raise UserError(f"{run.name} has done its {settings.steps} steps: give more with "
                        f"--steps {2 * settings.steps}")
    if settings.minutes is not None and state.elapsed >= 60 * settings.minutes:
        raise UserError(f"{run.name} has had its {settings.minutes:g} minutes: give more with "
                        f"--minutes {2 * settings.minutes:g}")
    corpus = find(run.path, run.config["corpus"]["fingerprint"], recipe(run))
    if settings != run.settings:
        run.set_settings(settings)
    metrics.cut(run.metrics, state.step)
    say(f"{run.path}: going on at step {state.step}, {backend.name} on {backend.device}")
    return make_loop(run, spec, settings, corpus, backend, weights, optimizer, state)


def make_loop(run: RunDir, spec: Spec, settings: Settings, corpus: Corpus, backend: Backend,
              weights: Arrays, optimizer: Arrays, state: TrainState) -> Loop:
    model = backend.build(spec, weights, settings.dtype, settings.recompute)  # type: ignore
    trainer = backend.trainer(model, settings_from(settings.to_dict()), settings.compile)
    if optimizer:
        trainer.load_state(optimizer)
    micro_batch = settings.micro_batch or settings.batch_size
    if settings.memory and settings.micro_batch is None:
        T = longest(spec, settings)
        micro_batch = micro_batch_for(
            settings.memory, backend, trainer,
            lambda rows: batch(corpus, settings.seed, 0, rows, T, spec.dropout > 0),
            settings.batch_size)
        say(f"micro-batches of {micro_batch} rows keep below {settings.memory / 2**30:g} GB")
    return Loop(run, spec, settings, corpus, backend, model, trainer, state, micro_batch)


def report(loop: Loop, ending: str, pictures: str) -> int:
    """The last lines of a run, and its exit code."""
    name, step = loop.run.name, loop.state.step
    again = f"python train/run.py --resume {name}"
    if ending == "interrupted":
        say(f"saved at step {step}; go on with: {again}")
        return 130
    if ending == "diverged":
        say(f"error: {loop.skipped_in_row} updates in a row were not finite; the weights before "
            f"them are saved at step {step}. Try: {again} --lr {loop.settings.lr / 3:.1e}"
            + (", or --dtype bfloat16" if loop.settings.dtype == "float16" else ""))
        return 1
    say(f"done: {step} steps in {loop.elapsed:.0f} s, {loop.run.path}{pictures}")
    say(f"generate:  python generate/run.py --run {name} --prompt 'The '")
    return 0


def longest(spec: Spec, settings: Settings) -> int:
    return max(spec.block_size, *(settings.seq_curriculum or (0,)))


def described(corpus: Corpus) -> dict[str, object]:
    """What config.json says of the corpus."""
    return {"fingerprint": corpus.fingerprint, "source": corpus.source,
            "train_tokens": len(corpus.train), "val_tokens": len(corpus.val)}


def recipe(run: RunDir) -> str:
    """The command that prepares the corpus of a run again."""
    options = {"data": run.settings.data, "tokenizer": run.settings.tokenizer,
               "data-config": run.settings.data_config, "data-tokens": run.settings.data_tokens}
    words = [f"--{name} {value}" for name, value in options.items() if value is not None]
    return f"python train/run.py --arch {run.config['arch']} --steps 0 {' '.join(words)}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main_exit(main)
