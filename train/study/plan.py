"""What an experiment is, and which trainings it needs, given those that are done.

A training, an `Arm`, is of one of these kinds:

    probe   no training: peak memory of a step, speed of decoding, for each setup
    measure no training: what train/study/timing.py finds of some setups side by side
    tokens  all setups see the same number of tokens (or their share of it): with the first seed at
            each learning rate, and beyond the best of them while that is the first or last, with
            the other seeds at the best
    time    all setups of a group are given the same time (or their share), by the speeds that
            `tokens` measured
    clock   with --minutes, in place of both: each training is ended by the clock
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from statistics import median, median_low
from typing import Any, Literal

from specs import Spec
from specs.backend import available_backends
from train.study.setup import Setup, options
from train.study.timing import SECONDS, Measure

BEYOND = 3  # learning rates tried at most outside those given
NEAR = 0.05  # a number of updates that differs by less is the same
HELD_OUT = 16_384  # tokens of the held-out part that are read at once
EVALUATIONS = 4  # of a training
GUESS = 2e10  # FLOP/s, before anything is measured
START = 5.0  # seconds of a process besides its training
Kind = Literal["probe", "measure", "tokens", "time", "clock"]
Found = dict[str, dict[str, Any]]  # name of an arm → its figures


@dataclass(frozen=True)
class Experiment:
    """`setups(full, vocab_size)` by name; `steps`: updates of the first of them, by default and
    with --full; `minutes`: how long the default takes on two cores; `choose`: each setup is shown
    at its best learning rate alone; `timed`: equal time is compared too; `contexts`: tokens behind
    which decoding is timed; `measures` by name; `claims` (train/study/claims.py) that are held
    against it all; `answer(plan)`: the paragraph that answers `question`."""

    question: str
    setups: Callable[[bool, int], dict[str, Setup]]
    answer: Callable[[Plan], str]
    steps: tuple[int, int]
    minutes: int
    choose: bool = True
    timed: bool = True
    contexts: tuple[int, ...] = ()
    measures: Mapping[str, Measure] = field(default_factory=dict)
    claims: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Arm:
    """`length`: updates, or minutes of the kind clock."""

    setup: str
    kind: Kind
    lr: float = 0.0
    seed: int = 0
    length: float = 0.0

    @property
    def name(self) -> str:
        """Of its run, in the folder of the experiment."""
        ending = {"probe": "-probe", "measure": "-measure",
                  "tokens": f"-lr{self.lr:g}-s{self.seed}"}
        return self.setup + ending.get(self.kind, f"-lr{self.lr:g}-{self.kind}-s{self.seed}")


@dataclass
class Plan:
    """An experiment at some size. `found` grows while it is carried out; `words`: of train/run.py
    for all trainings, the data; `lrs`: in place of the setups' own learning rates."""

    experiment: Experiment
    setups: dict[str, Setup]
    steps: int
    seeds: int = 3
    minutes: float | None = None
    vocab_size: int = 256
    words: list[str] = field(default_factory=list)
    lrs: tuple[float, ...] = ()
    only: tuple[str, ...] = ()
    found: Found = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = self.steps * next(iter(self.setups.values())).tokens
        if self.only:
            self.setups = {name: self.setups[name] for name in self.only}

    @cached_property
    def specs(self) -> dict[str, Spec]:
        return {name: setup.spec(self.vocab_size) for name, setup in self.setups.items()}

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of the trainings that are compared."""
        if self.minutes is not None:
            return ("clock",)
        return ("tokens", "time") if self.experiment.timed else ("tokens",)

    @property
    def lengths(self) -> list[int]:
        """Of the held-out windows that each trained model reads without faults, where this tells
        more than its own validation."""
        lengths = sorted({setup.fields["block_size"] for setup in self.setups.values()
                          if setup.rates})
        faulty = any(setup.faults for setup in self.setups.values())
        return lengths if faulty or len(lengths) > 1 else []

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """Those whose setups and whose backend are here."""
        return {name: measure for name, measure in self.experiment.measures.items()
                if self.setups.keys() >= set(measure.setups)
                and measure.backend in (None, *available_backends())}

    @cached_property
    def costs(self) -> dict[str, float]:
        """FLOPs of training on one token."""
        return {name: 3 * spec.flops_per_token(spec.block_size)
                for name, spec in self.specs.items()}

    def arms(self) -> Iterator[Arm]:
        """All of them, in order: those that depend on what is not known yet, as it seems now."""
        yield from (Arm(name, "probe") for name in self.setups)
        yield from (Arm(name, "measure") for name in self.measures)
        seen = set()
        for arm in self.trainings():
            if arm not in seen:
                seen.add(arm)
                yield arm

    def trainings(self) -> Iterator[Arm]:
        """Those that tell which learning rate is best, then all that are compared."""
        yield from (self.swept(name, lr) for name in self.setups for lr in self.rates(name))
        yield from (self.arm(name, kind, lr, seed) for kind in self.kinds
                    for seed in range(self.seeds) for name in self.setups
                    for lr in self.shown(name))

    def swept(self, name: str, lr: float) -> Arm:
        """The training that tells how good this learning rate is."""
        return self.arm(name, self.kinds[0], lr, 0)

    def rates(self, name: str) -> list[float]:
        """The learning rates that are tried, in order."""
        rates = sorted(self.setups[name].rates and (self.lrs or self.setups[name].rates))
        factor = rates[1] / rates[0] if len(rates) > 1 and not self.lrs else 1.0
        for _ in range(BEYOND if factor > 1 and self.experiment.choose else 0):
            best = self.best(name, rates)
            if best == rates[0]:
                rates.insert(0, float(f"{rates[0] / factor:.2g}"))
            elif best == rates[-1]:
                rates.append(float(f"{rates[-1] * factor:.2g}"))
            else:
                break
        return rates

    def known(self, arm: Arm) -> bool:
        """Whether it need not be done. What equal time is may have changed since it was: with more
        seeds, or a training that failed at first."""
        figures = self.found.get(arm.name)
        return figures is not None and (arm.kind != "time" or abs(
            figures.get("updates", arm.length) / arm.length - 1) < NEAR)

    def best(self, name: str, rates: list[float]) -> float | None:
        """The learning rate whose training ended lowest; None before all are known, or if all
        fail."""
        losses = {lr: loss for lr in rates if (loss := self.loss(self.swept(name, lr))) is not None}
        known = len(losses) == len(rates) and min(losses.values()) < inf
        return min(losses, key=losses.__getitem__) if known else None

    def shown(self, name: str) -> list[float]:
        """The learning rates of a setup that are compared: the best, or all."""
        rates = self.rates(name)
        if not self.experiment.choose or len(rates) <= 1:
            return rates
        return [self.best(name, rates) or rates[len(rates) // 2]]

    def loss(self, arm: Arm) -> float | None:
        """Held-out nats at the end; infinite where it failed, None where it is not known."""
        figures = self.found.get(arm.name, {})
        return inf if "error" in figures else figures.get("loss")

    def arm(self, name: str, kind: Kind, lr: float, seed: int) -> Arm:
        """The training of this kind; that of equal tokens where equal time is the same."""
        if kind == "clock":
            return Arm(name, kind, lr, seed, self.clock(name))
        if kind == "time" and abs((timed := self.timed(name)) / self.updates(name) - 1) >= NEAR:
            return Arm(name, kind, lr, seed, timed)
        return Arm(name, "tokens", lr, seed, self.updates(name))

    def clock(self, name: str) -> float:
        """Minutes of a training that is ended by the clock."""
        return self.setups[name].share * (self.minutes or 0.0)

    def updates(self, name: str) -> int:
        """At equal tokens."""
        return self.setups[name].updates(self.tokens)

    def timed(self, name: str) -> int:
        """Updates in the time that the middle setup of the group needs at equal tokens."""
        group = [other for other, setup in self.setups.items()
                 if setup.rates and setup.group == self.setups[name].group]
        group = [other for other in group if self.setups[other].share == 1] or group
        known = [other for other in group if self.ended(other, ("tokens",))]
        budget = median_low(self.tokens / self.speed(other) for other in known or group)
        return self.setups[name].updates(budget * self.speed(name))

    def speed(self, name: str) -> float:
        """Tokens/s: beside another setup where a measure has both, up to the first of the group,
        for trainings that follow one another see the machine at different times; the median of
        trainings; or by FLOPs."""
        first = next(other for other, setup in self.setups.items()
                     if setup.group == self.setups[name].group)
        for one, *others in (measure.setups for measure in self.measures.values()):
            if one == name != first and len(others) == 1 and self.setups[others[0]].rates and (
                    beside := self.beside(name, others[0])):
                return beside["middle"] * self.speed(others[0])
        rates = [figures["rate"] for figures in self.ended(name, ("tokens", "clock"))]
        return median(rates) if rates else self.flops(name) / self.costs[name]

    def beside(self, setup: str, base: str) -> dict[str, float]:
        """How many times as fast as with `base` a token is with `setup`, with the quartiles; empty
        where no measure has them side by side."""
        for name, measure in self.measures.items():
            found = self.found.get(f"{name}-measure", {})
            if measure.setups == (setup, base) and "tokens" in found:
                more = found["tokens"][setup] / found["tokens"][base]
                return {key: more * value for key, value in found["faster"].items()}
        return {}

    def flops(self, name: str) -> float:
        """FLOP/s that a setup was seen to reach, or any, or a guess."""
        for known in ([name], list(self.setups)):
            rates = [figures["rate"] * self.costs[each] for each in known
                     for figures in self.ended(each, ("tokens", "clock"))]
            if rates:
                return median(rates)
        return GUESS

    def ended(self, name: str, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
        """Figures of all trainings of a setup that ended well."""
        return [figures for figures in self.found.values() if figures.get("setup") == name
                and figures.get("kind") in kinds and "error" not in figures]

    def seconds(self, arm: Arm) -> float:
        """How long it will take, about."""
        if arm.kind in ("probe", "measure"):
            return START + SECONDS * (arm.kind == "measure")
        if self.minutes is not None:
            return START + 60 * arm.length
        read = EVALUATIONS * HELD_OUT / 3  # without the backward pass
        return START + (arm.length * self.setups[arm.setup].tokens + read) / self.speed(arm.setup)

    def training_words(self, arm: Arm) -> list[str]:
        """For train/run.py."""
        setup = self.setups[arm.setup]
        settings: dict[str, Any] = {"lr": arm.lr, "seed": arm.seed, "keep": 1, "eval_windows": max(
            1, HELD_OUT // setup.fields["block_size"])}
        if self.minutes is not None:
            settings["minutes"] = arm.length
        else:
            steps = int(arm.length)
            settings |= {"steps": steps, "log_every": max(1, steps // 20),
                         "eval_every": max(1, steps // EVALUATIONS),
                         "save_every": max(1, steps // 10)}
        return [*setup.arguments(), *options({**settings, **setup.settings}), *self.words]
