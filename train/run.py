"""Train a model, on MLX or PyTorch, or go on with a run: `python train/run.py --help`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from specs import Spec, UserError, init_weights, main_exit
from specs.backend import (
    Arrays,
    Backend,
    Model,
    Trainer,
    load_backend,
    load_strictly,
    settings_from,
)
from specs.errors import lacking
from train import checkpoint, metrics, plots
from train.batches import batch
from train.checkpoint import TrainState
from train.data import Corpus, find, prepare, require_length, store
from train.loop import Loop
from train.memory import micro_batch_for
from train.options import (
    DEFAULT_STEPS,
    new_settings,
    new_spec,
    parser,
    resumed_settings,
    with_tokens,
)
from train.rundir import RunDir, require_new
from train.settings import Settings
from train.tokenizer import Tokenizer


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.resume is None and args.arch is None:
        raise UserError("say what to train: --arch bdh, or --resume NAME to go on with a run")
    backend = load_backend(args.backend, args.device)
    loop, ending, drawn = None, None, []
    try:
        with ExitStack() as locks:
            loop = (start if args.resume is None else resume)(args, backend, locks)
            ending = loop.train()
            drawn = plots.draw(loop.run.path)
    except KeyboardInterrupt:
        if loop is None:
            raise
        ending = ending or "interrupted"  # not what ended well and was being drawn
    except (OSError, MemoryError, RuntimeError, ValueError) as error:
        lacked = lacking(error)
        if lacked is None:
            raise
        way_out = "free some space" if isinstance(error, OSError) else (
            "choose a smaller --micro-batch, or let --memory choose it")
        raise UserError(f"{lacked}: {way_out}, then " + (
            f"go on from step {loop.run.steps()[-1]} with: {again(loop, args)}" if loop else
            "run the same command again")) from error
    return report(loop, args, ending, f"; plots in {loop.run.plots}" if drawn else "")


def start(args: argparse.Namespace, backend: Backend, locks: ExitStack) -> Loop:
    """A new run, written down with its first checkpoint once all is known to fit."""
    settings = new_settings(args)
    require_new(args.name)
    new_spec(args, vocab_size=1)  # what is misspelt is told before a long preparation
    corpus, tokenizer = prepared(settings)
    spec, preset = new_spec(args, tokenizer.vocab_size)
    settings = with_tokens(args, settings, spec.block_size)
    require_length(corpus, spec.block_size)
    weights = init_weights(spec, settings.seed)
    if settings.init:
        source = load_strictly(spec, checkpoint.load_arrays(Path(settings.init)), settings.init)
        weights = {name: array.astype("float32") for name, array in source.items()}
    model, trainer = make_trainer(spec, settings, backend, weights)
    settings = with_micro_batch(spec, settings, corpus, backend, trainer)

    def fill(folder: Path) -> None:
        store(corpus, folder)
        checkpoint.save(folder, TrainState(), weights, trainer.state(), backend.versions())

    run = RunDir.create(args.name, spec, settings, preset, tokenizer, described(corpus),
                        backend.versions(), fill)
    locks.enter_context(run.lock())
    idle = spec.param_count() - spec.active_param_count()
    active = f" ({spec.active_param_count():,} active)" if idle else ""
    say(f"{run.path}: {spec.arch} {preset}, {spec.param_count():,} parameters{active}, "
        f"{backend.name} on {backend.device}; {len(corpus.train):,} tokens of {corpus.source}")
    return Loop(run, spec, settings, corpus, backend, model, trainer, TrainState())


def resume(args: argparse.Namespace, backend: Backend, locks: ExitStack) -> Loop:
    """A run from its last whole checkpoint; nothing of it changes before all is known to fit."""
    run = RunDir.open(args.resume)
    locks.enter_context(run.lock())
    spec, settings = run.spec, resumed_settings(args, run)
    state, (weights, optimizer), remarks = checkpoint.load_last(run.path)
    for remark in remarks:
        say(remark)
    if settings.steps is not None and state.step >= settings.steps:
        raise UserError(f"{run.name} has done its {settings.steps} steps: " + (
            "its windows have grown over them, start another run"
            if settings.seq_curriculum and state.step else
            f"give more with --steps {2 * settings.steps or DEFAULT_STEPS}"))
    if settings.minutes is not None and state.elapsed >= 60 * settings.minutes:
        raise UserError(f"{run.name} has had its {settings.minutes:g} minutes: give more with "
                        f"--minutes {2 * settings.minutes:g}")
    corpus = find(run.path, run.config["corpus"].get("fingerprint", ""), recipe(run))
    model, trainer = make_trainer(spec, settings, backend, weights)
    trainer.load_state(optimizer)
    settings = with_micro_batch(spec, settings, corpus, backend, trainer)
    if settings != run.settings:
        run.set_settings(settings)
    metrics.cut(run.metrics, state.step)
    checkpoint.set_aside(run.path, state.step)
    say(f"{run.path}: going on at step {state.step}, {backend.name} on {backend.device}")
    return Loop(run, spec, settings, corpus, backend, model, trainer, state)


def prepared(settings: Settings) -> tuple[Corpus, Tokenizer]:
    """The corpus that the settings name, and its tokenizer."""
    return prepare(
        settings.data, settings.tokenizer, max_tokens=settings.data_tokens,
        config=settings.data_config, split=settings.data_split,
        text_column=settings.text_column, streaming=settings.stream)


def make_trainer(spec: Spec, settings: Settings, backend: Backend,
                 weights: Arrays) -> tuple[Model, Trainer]:
    model = backend.build(spec, weights, settings.dtype, settings.recompute,  # type: ignore
                          settings.attention)  # type: ignore
    return model, backend.trainer(model, settings_from(settings.to_dict()), settings.compile)


def with_micro_batch(spec: Spec, settings: Settings, corpus: Corpus, backend: Backend,
                     trainer: Trainer) -> Settings:
    """These settings with the micro-batch that --memory allows, unless they have one: measured
    once, since sums over other micro-batches are rounded in another way."""
    if settings.memory is None or settings.micro_batch is not None:
        return settings
    rows = micro_batch_for(
        settings.memory, backend, trainer,
        lambda rows: batch(corpus, settings.seed, 0, rows, spec.block_size, spec.noisy),
        settings.batch_size)
    say(f"micro-batches of {rows} rows keep below {settings.memory / 2**30:g} GB")
    return replace(settings, micro_batch=rows)


def report(loop: Loop, args: argparse.Namespace, ending: str, pictures: str) -> int:
    """The last lines of a run, and its exit code."""
    name, step, saved = loop.run.name, loop.state.step, loop.run.steps()[-1]
    if ending == "interrupted":
        left = f"left at step {step}, " if saved < step else ""
        say(f"{left}saved at step {saved}; go on with: {again(loop, args)}")
        return 130
    if ending == "diverged":
        say(f"error: {loop.skipped_in_row} updates in a row were not finite; the last good "
            f"checkpoint is that of step {saved}. Try: {again(loop, args)} --lr "
            f"{loop.settings.lr / 3:.1e}"
            + (" --dtype bfloat16" if loop.settings.dtype == "float16" else ""))
        return 1
    say(f"done: {step} steps in {loop.elapsed:.0f} s, {loop.run.path}{pictures}")
    say(f"generate:  python {shown('generate/run.py')} --run {name} --prompt 'The '")
    return 0


def again(loop: Loop, args: argparse.Namespace) -> str:
    """The command that goes on with this run, on the same backend and device."""
    words = ["python", shown("train/run.py"), "--resume", loop.run.name, "--backend",
             loop.backend.name]
    return shlex.join(words + (["--device", args.device] if args.device else []))


def shown(script: str) -> str:
    """The path of a command as it is to be typed in the current folder."""
    return os.path.relpath(Path(__file__).parent.parent / script)


def described(corpus: Corpus) -> dict[str, object]:
    """What config.json says of the corpus."""
    return {"fingerprint": corpus.fingerprint, "source": corpus.source,
            "train_tokens": len(corpus.train), "val_tokens": len(corpus.val)}


def recipe(run: RunDir) -> str:
    """The command that prepares the corpus of a run again, and leaves it in the cache."""
    words = ["python", shown("train/run.py"), "--arch", run.config["arch"], "--steps", "0",
             "--block-size", str(run.spec.block_size)]
    for name in ("data", "tokenizer", "data_config", "data_split", "data_tokens", "text_column"):
        value = getattr(run.settings, name)
        if value is not None and value != getattr(Settings, name):
            words += ["--" + name.replace("_", "-"), str(value)]
    return shlex.join(words + (["--stream"] if run.settings.stream else []))


def say(text: str) -> None:
    with suppress(OSError):  # nobody reads it any more
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main_exit(main)
