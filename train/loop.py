"""The training loop: batches, steps, log points, evaluations, checkpoints, a calm end."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Literal

import numpy as np

from specs import Spec
from specs.backend import Backend, Batch, Model, Trainer
from train import checkpoint, metrics
from train.batches import batch, prefetch, split, validation_windows
from train.checkpoint import TrainState
from train.data import Corpus
from train.progress import Display
from train.rundir import RunDir
from train.schedule import learning_rate
from train.settings import Settings

SKIP_LIMIT = 10  # updates in a row that are not finite: more will not help
Ending = Literal["done", "interrupted", "diverged"]


@dataclass
class Loop:
    """Everything that a run consists of while it trains."""

    run: RunDir
    spec: Spec
    settings: Settings
    corpus: Corpus
    backend: Backend
    model: Model
    trainer: Trainer
    state: TrainState

    def __post_init__(self) -> None:
        self.micro_batch = self.settings.micro_batch or self.settings.batch_size
        self.skipped_in_row, self.logged_skipped = 0, self.state.skipped
        self.interrupted = False
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.load: np.ndarray | None = None
        self.loss_scale, self.rate = 1.0, 0.0
        self.best = checkpoint.best_loss(self.run.path)
        self.peak_rate = self.backend.matmul_rate(self.settings.dtype)  # type: ignore[arg-type]
        self.windows = validation_windows(self.corpus, self.spec.block_size,
                                          self.settings.eval_windows)
        self.started = time.monotonic() - self.state.elapsed
        self.logged_at, self.logged_tokens, self.paused = time.monotonic(), self.state.tokens, 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def total(self) -> float:
        """Steps, or seconds of a run bounded by time."""
        return self.settings.steps if self.settings.steps is not None else (
            60 * (self.settings.minutes or 0))

    def train(self) -> Ending:
        """Train to the end of the settings. A checkpoint is written however it ends, unless the
        model has broken: then the last one before stays the last."""
        bounded = self.settings.steps is not None
        done = self.state.step if bounded else self.state.elapsed
        with Display(self.total, done) as display, _Interrupt(self, display):
            for step, batches in self.batches():
                self.rate = learning_rate(self.settings, step, self.elapsed)
                self.trainer.step(batches, self.rate)
                self.state = replace(
                    self.state, step=step + 1, elapsed=self.elapsed, val_loss=None,
                    tokens=self.state.tokens + sum(b.tokens.size for b in batches))
                last = (step + 1 if bounded else self.elapsed) >= self.total
                interrupted = self.interrupted and not last  # what is nearly done is ended well
                if last or interrupted or self.due(self.settings.log_every):
                    self.log(display)
                diverged = self.skipped_in_row >= SKIP_LIMIT
                stop = interrupted or diverged
                best = False
                if not stop and (last or self.due(self.settings.eval_every)):
                    best = self.evaluate(display)
                if stop or last or best or self.due(self.settings.save_every):
                    self.save(display)
                if stop:
                    return "diverged" if diverged else "interrupted"
                if last:
                    break
        return "done"

    def due(self, every: int) -> bool:
        return self.state.step % every == 0

    def batches(self) -> Iterator[tuple[int, list[Batch]]]:
        """(step, its micro-batches) from the run's step on, prepared ahead of their use."""
        def make(step: int) -> list[Batch]:
            T = self.settings.block_size(step, self.spec.block_size)
            rows = batch(self.corpus, self.settings.seed, step, self.settings.batch_size, T,
                         dropout=self.spec.noisy)
            return split(rows, self.micro_batch)

        first = self.state.step
        stop = self.settings.steps if self.settings.steps is not None else sys.maxsize
        yield from enumerate(prefetch(make, first, stop), first)

    def read(self) -> None:
        """Wait for the steps so far, and count what they found."""
        progress = self.trainer.read()
        good = progress.finite
        for ok in good:
            self.skipped_in_row = 0 if ok else self.skipped_in_row + 1
        self.state = replace(self.state, skipped=self.state.skipped + good.count(False))
        self.losses += [loss for loss, ok in zip(progress.losses, good, strict=True) if ok]
        self.grad_norms += [norm for norm, ok in zip(progress.grad_norms, good, strict=True) if ok]
        self.loss_scale = progress.loss_scale
        if progress.load is not None:
            self.load = progress.load + (0 if self.load is None else self.load)

    def log(self, display: Display) -> None:
        self.read()
        now = time.monotonic()
        seconds = now - self.logged_at - self.paused
        tokens = self.state.tokens - self.logged_tokens
        self.logged_at, self.logged_tokens, self.paused = now, self.state.tokens, 0.0
        loss = float(np.mean(self.losses)) if self.losses else math.nan
        norm = float(np.mean(self.grad_norms)) if self.grad_norms else math.nan
        self.losses, self.grad_norms = [], []
        T = self.settings.block_size(self.state.step - 1, self.spec.block_size)
        rate = tokens / max(seconds, 1e-9)
        row = {
            "step": self.state.step, "tokens": self.state.tokens, "elapsed": self.elapsed,
            "loss": loss, **self.per_byte(loss, self.corpus.train_bytes_per_token),
            "lr": self.rate, "grad_norm": norm, "tokens_per_s": rate,
            "mfu": 3 * self.spec.flops_per_token(T) * rate / self.peak_rate,
            "memory": self.backend.peak_memory(), "skipped": self.state.skipped,
            "backend": self.backend.name,
        }
        if self.settings.dtype == "float16":
            row["loss_scale"] = self.loss_scale
        row |= self.shares()
        metrics.append(self.run.metrics, row)
        self.show(display, row)
        skipped = self.state.skipped - self.logged_skipped
        self.logged_skipped = self.state.skipped
        if skipped:
            display.say(f"step {self.state.step}: {skipped} update(s) skipped, the loss or its "
                        "gradient was not finite")

    def show(self, display: Display, row: dict[str, Any]) -> None:
        if self.settings.steps is None:
            done, place = self.elapsed, f"step {self.state.step}"
            eta = max(self.total - done, 0)
        else:
            done, place = self.state.step, f"step {self.state.step}/{self.settings.steps}"
            left = self.settings.tokens_until(
                self.settings.steps, self.spec.block_size) - self.state.tokens
            eta = left / max(row["tokens_per_s"], 1e-9)
        display.show(done, place, row, eta)

    def shares(self) -> dict[str, list[float]]:
        """How often each expert of a layer was chosen since the last call, as a multiple of an
        equal share: 1 for all where the load is balanced."""
        load, self.load = self.load, None
        return {} if load is None else {
            f"load.{i}": (counts / counts.mean()).round(4).tolist()
            for i, counts in enumerate(load)}

    @staticmethod
    def per_byte(loss: float, bytes_per_token: float, prefix: str = "") -> dict[str, float]:
        """The same loss comparable across tokenizers, and as perplexity."""
        return {f"{prefix}bpb": loss / math.log(2) / bytes_per_token,
                f"{prefix}perplexity": math.exp(min(loss, 700.0))}

    def evaluate(self, display: Display) -> bool:
        """Loss and accuracy on the held-out windows, as one metrics line; whether it is the lowest
        loss so far."""
        self.read()  # what is waited for is training, and no pause of it
        start = time.monotonic()
        tokens, targets = self.windows
        nats, right = 0.0, 0
        for first in range(0, len(tokens), self.micro_batch):
            rows = slice(first, first + self.micro_batch)
            more_nats, more_right = self.trainer.evaluate(tokens[rows], targets[rows])
            nats, right = nats + more_nats, right + more_right
        loss = nats / targets.size
        self.state = replace(self.state, val_loss=loss if math.isfinite(loss) else None)
        row = {"step": self.state.step, "elapsed": self.elapsed, "val_loss": loss,
               **self.per_byte(loss, self.corpus.val_bytes_per_token, "val_"),
               "val_accuracy": right / targets.size}
        metrics.append(self.run.metrics, row)
        display.say(f"step {self.state.step}: validation loss {loss:.4f}, "
                    f"{row['val_bpb']:.3f} bits per byte, accuracy {row['val_accuracy']:.1%}")
        self.paused += time.monotonic() - start
        best, self.best = loss < self.best, min(self.best, loss)
        return best

    def save(self, display: Display) -> None:
        """Write a checkpoint, unless the model has broken: what cannot be used must not push out
        what can."""
        self.read()
        start = time.monotonic()
        tokens, targets = (part[: self.micro_batch] for part in self.windows)
        if self.state.val_loss is None and not math.isfinite(
                self.trainer.evaluate(tokens, targets)[0]):
            display.say(f"step {self.state.step}: not saved, the loss of these weights is not "
                        "finite")
        else:
            self.state = replace(self.state, elapsed=self.elapsed)
            checkpoint.save(self.run.path, self.state, self.backend.weights(self.model),
                            self.trainer.state(), self.backend.versions())
            checkpoint.prune(self.run.path, self.settings.keep)
        self.paused += time.monotonic() - start


class _Interrupt:
    """The first Ctrl-C, SIGTERM or SIGHUP (the terminal was closed) ends the run after the step in
    hand; a second Ctrl-C or SIGTERM leaves at once and takes a half-written checkpoint back."""

    def __init__(self, loop: Loop, display: Display):
        self.loop, self.display = loop, display

    def __enter__(self) -> None:
        self.before = [(number, signal.signal(number, self.handle))
                       for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                       if signal.getsignal(number) != signal.SIG_IGN]  # as nohup sets it

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before:
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.display.live:  # nobody can be told any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        if self.loop.interrupted and number != signal.SIGHUP:  # which often comes twice
            raise KeyboardInterrupt
        self.loop.interrupted = True
        self.display.say("stopping after this step; press Ctrl-C again to leave at once")
