"""The learning rate: linear warm-up, then cosine, warm-up–stable–decay, or constant."""

from __future__ import annotations

import math

from train.settings import Settings

SCHEDULES = ("cosine", "wsd", "constant")
WSD_DECAY = 0.2  # share of the run in which "wsd" falls


def learning_rate(settings: Settings, step: int, elapsed: float = 0.0) -> float:
    """The rate of optimizer update `step` (from 0), `elapsed` seconds after the run began.

    Counts updates, not micro-batches. A run bounded by --minutes goes by the clock instead, and
    warms up, unless it is told for how long, in a tenth of its time if that is over sooner.
    The last update of "cosine" and "wsd" is made at min_lr·lr, unless the warm-up is longer.
    """
    warmup = settings.warmup_steps
    warm = (step + 1) / warmup if warmup else math.inf
    if settings.steps is None:
        done = elapsed / (60 * (settings.minutes or math.inf))
        if settings.warmup is None:
            warm = max(warm, 10 * done)
    else:
        done = (step - warmup) / max(settings.steps - 1 - warmup, 1)
    if warm <= 1:
        return settings.lr * warm
    done = min(done, 1.0)
    if settings.schedule == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * done))
    elif settings.schedule == "wsd":
        height = min(1.0, (1 - done) / WSD_DECAY)
    else:
        return settings.lr
    return settings.lr * (settings.min_lr + (1 - settings.min_lr) * height)
