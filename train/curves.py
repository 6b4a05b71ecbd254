"""What several runs have measured: their losses against steps, tokens, time and FLOPs, a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from specs import Spec, UserError
from train import metrics
from train.numerals import duration, short
from train.plots import Rows
from train.rundir import RunDir
from train.settings import Settings

AXES = ("steps", "tokens", "time", "FLOPs")
LOSSES = {"loss": "training", "val_loss": "validation"}
COLUMNS = ("run", "arch", "size", "steps", "tokens", "time", "FLOPs", "train loss",
           "best val. loss", "at step", "tok/s", "MFU")


@dataclass(frozen=True)
class Curve:
    """Points of one run: `x` (n,) of the axis asked for, `y` (n,) the loss."""

    x: np.ndarray
    y: np.ndarray

    def smoothed(self, weight: float) -> Curve:
        """The exponential moving average that keeps `weight` of the past at each point, without
        the pull of its beginning (Kingma & Ba, arXiv 1412.6980, section 3)."""
        past, total, means = 0.0, 0.0, []
        for value in self.y:
            past, total = weight * past + (1 - weight) * value, weight * total + 1 - weight
            means.append(past / total)
        return Curve(self.x, np.array(means))


@dataclass(frozen=True)
class History:
    """A run with its metrics."""

    name: str
    config: dict[str, Any]
    spec: Spec
    settings: Settings
    tokenizer: str
    rows: Rows

    @cached_property
    def tokens_by_step(self) -> np.ndarray:
        """Tokens seen after 0, 1, 2, … steps."""
        return np.concatenate([[0], np.cumsum(self._lengths * self.settings.batch_size)])

    @cached_property
    def flops_by_step(self) -> np.ndarray:
        """FLOPs of training after 0, 1, 2, … steps: three forward passes' worth for each token."""
        cost = {length: 3 * self.spec.flops_per_token(int(length))
                for length in np.unique(self._lengths)}
        each = [self.settings.batch_size * length * cost[length] for length in self._lengths]
        return np.concatenate([[0.0], np.cumsum(each)])

    @cached_property
    def _lengths(self) -> np.ndarray:
        """Tokens in a window at each step."""
        steps = range(max((row["step"] for row in self.rows), default=0))
        block = self.spec.block_size
        return np.array([self.settings.block_size(step, block) for step in steps], int)

    def curve(self, key: str, axis: str = "steps") -> Curve:
        """The measured values of `key` along one of AXES; time in seconds."""
        rows = [row for row in self.rows if row.get(key) is not None]
        steps = np.array([row["step"] for row in rows], int)
        x = {"steps": lambda: steps, "tokens": lambda: self.tokens_by_step[steps],
             "time": lambda: np.array([row["elapsed"] for row in rows], float),
             "FLOPs": lambda: self.flops_by_step[steps]}[axis]()
        return Curve(x, np.array([row[key] for row in rows], float))

    def last(self, key: str) -> Any:
        """The last value that was measured; None without one."""
        return next((row[key] for row in reversed(self.rows) if row.get(key) is not None), None)

    def best(self, key: str) -> tuple[int, float] | None:
        """(step, value) of the lowest value; None without one."""
        curve = self.curve(key)
        lowest = curve.y.argmin() if len(curve.y) else None
        return None if lowest is None else (int(curve.x[lowest]), float(curve.y[lowest]))


def read_history(name: str) -> History:
    """The run of this name. Raises `UserError` if there is none, or nothing was measured yet."""
    run = RunDir.open(name)
    rows = [row for row in metrics.read(run.metrics) if "step" in row and "elapsed" in row]
    history = History(run.name, run.config, run.spec, run.settings, run.tokenizer().to_json(), rows)
    if not any(len(history.curve(key).y) for key in LOSSES):
        raise UserError(f"{run.name} has measured no loss yet: train it first, with "
                        f"python train/run.py --resume {run.name}")
    return history


def measure(histories: list[History]) -> tuple[dict[str, str], str]:
    """({key of the metrics: "training" or "validation"}, its unit) that can be compared: the loss
    per token between runs of one tokenizer, else bits per byte."""
    if len({history.tokenizer for history in histories}) == 1:
        return LOSSES, "nats per token"
    return {"bpb": "training", "val_bpb": "validation"}, "bits per byte"


def remarks(histories: list[History]) -> list[str]:
    """What a reader of the comparison must know."""
    said = []
    if len({history.tokenizer for history in histories}) > 1:
        said.append("The runs have different tokenizers: bits per byte are compared.")
    if len({history.config["corpus"].get("fingerprint") for history in histories}) > 1:
        said.append("The runs were trained and validated on different texts or parts of a text: "
                    "their losses are of different things.")
    chips = {str(history.config.get("versions", {}).get("chip")) for history in histories}
    if len(chips) > 1:
        said.append("The runs began on different machines: compare their times with care.")
    return said


def cells(history: History, histories: list[History], smooth: float) -> list[str]:
    """A row of the table: what COLUMNS name, "-" where nothing was measured."""
    (training, validation), unit = measure(histories)
    curve, best = history.curve(training), history.best(validation)
    steps = max(row["step"] for row in history.rows)
    rate, share = history.last("tokens_per_s"), history.last("mfu")
    return [
        history.name, history.spec.arch, short(history.spec.param_count()), f"{steps}",
        short(history.tokens_by_step[steps]), duration(history.last("elapsed")),
        short(history.flops_by_step[steps]),
        f"{curve.smoothed(smooth).y[-1]:.4f}" if len(curve.y) else "-",
        f"{best[1]:.4f}" if best else "-", f"{best[0]}" if best else "-",
        "-" if rate is None else short(rate), "-" if share is None else f"{share:.0%}"]
