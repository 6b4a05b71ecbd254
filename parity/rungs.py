"""The rungs of the model itself: parameters, activations, single step, logits, loss, gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.budget import ROUNDOFF, Figures, norm, nudged
from parity.cases import Case, edge_cases, random_case
from parity.subject import Measure, Subject, Trial, attempt, compare
from specs.backend import Arrays, Call, OptimizerSettings


def parameters(subject: Subject) -> Iterator[Measure]:
    """Weights go in and come out with the names, shapes and bits of the table."""
    case = random_case(subject.spec, 1, 1, subject.seed)
    found = {
        name: panel.weights(panel.build(subject.spec, subject.weights))
        for name, panel in subject.panels.items()
    }
    names = {name for weights in found.values() for name in weights} | subject.weights.keys()
    for name in sorted(names):
        truth = subject.weights.get(name)
        errors = {panel: 0.0 if same_bits(weights.get(name), truth) else np.inf
                  for panel, weights in found.items()}
        yield Measure(case, name, 0.0 if truth is None else norm(truth), 0.0, errors)


def same_bits(found: np.ndarray | None, truth: np.ndarray | None) -> bool:
    return (found is not None and truth is not None and found.dtype == truth.dtype
            and found.shape == truth.shape and found.tobytes() == truth.tobytes())


def activations(subject: Subject) -> Iterator[Measure]:
    """The output of every submodule, while errors accumulate through the model."""
    def read(trial: Trial) -> Figures:
        calls = trial.backend.trace(trial.model, trial.batch)
        return {call.path: call.output for call in calls}

    for case in edge_cases(subject.spec, subject.seed):
        yield from compare(subject, case, read)


def single_step(subject: Subject) -> Iterator[Measure]:
    """Every submodule fed by the referee, so that only the guilty one turns red."""
    for B, T in ((2, 2), (2, 37)):
        yield from replays(subject, random_case(subject.spec, B, T, subject.seed))


def replays(subject: Subject, case: Case) -> Iterator[Measure]:
    """Forward, "PATH": the output for the referee's inputs. Backward, "PATH backward i": the
    gradient at input i for the referee's gradient at the output."""
    calls = referee_trace(subject, case, subject.weights)
    aside = referee_trace(subject, case, next(nudged(subject.weights, subject.seed)))
    fed: Arrays = {}
    for call, other in zip(calls, aside, strict=True):
        assert call.grad is not None
        fed[key(call, "grad")] = call.grad
        # What no weight moves is a constant (tokens, tables of sines): it carries no gradient.
        fed |= {key(call, i): x for i, x in enumerate(call.inputs)
                if isinstance(x, np.ndarray) and not np.array_equal(x, other.inputs[i])}

    def read(trial: Trial) -> Figures:
        figures = {}
        for call in calls:
            inputs = tuple(trial.start.get(key(call, i), x) for i, x in enumerate(call.inputs))
            grads = trial.backend.pullback(
                trial.model, call.path, inputs, trial.start[key(call, "grad")])
            figures[call.path] = trial.backend.replay(trial.model, call.path, inputs)
            figures |= {f"{call.path} backward {i}": grad for i, grad in enumerate(grads)
                        if grad is not None and key(call, i) in fed}
        return figures

    yield from compare(subject, case, read, {**subject.weights, **fed})


def referee_trace(subject: Subject, case: Case, weights: Arrays) -> list[Call]:
    trial = attempt(subject.spec, subject.referee, "float64", case.batch, weights)
    return trial.backend.trace(trial.model, case.batch, grads=True)


def key(call: Call, part: int | str) -> str:
    return f"{call.path} {part}"


def logits(subject: Subject) -> Iterator[Measure]:
    def read(trial: Trial) -> Figures:
        return {"logits": trial.backend.logits(trial.model, trial.batch.tokens)}

    for case in edge_cases(subject.spec, subject.seed):
        yield from compare(subject, case, read)


def loss(subject: Subject) -> Iterator[Measure]:
    """Mean cross-entropy as it is trained on, and as it is evaluated."""
    def read(trial: Trial) -> Figures:
        tokens, targets = trial.batch.tokens, trial.batch.targets
        mean, _ = trial.backend.loss_and_grads(trial.model, trial.batch)
        total, right = trial.backend.trainer(trial.model, OptimizerSettings()).evaluate(
            tokens, targets)
        return {"loss": np.array(mean), "evaluation": np.array(total / targets.size),
                "right guesses": np.array(right)}

    for case in edge_cases(subject.spec, subject.seed):
        exact = attempt(subject.spec, subject.referee, "float64", case.batch, subject.weights)
        logits = exact.backend.logits(exact.model, case.batch.tokens)

        def floor(truth: Figures, logits: np.ndarray = logits) -> dict[str, float]:
            room = loss_rounding(logits, truth["loss"])
            return {**dict.fromkeys(truth, room), "right guesses": 0.0}

        yield from compare(subject, case, read, floor=floor)


def loss_rounding(logits: np.ndarray, loss: np.ndarray) -> float:
    """The loss is log Σ exp(logits) less a logit, and inherits the rounding of both."""
    return ROUNDOFF * (float(np.abs(logits).max()) + float(loss))


def gradients(subject: Subject) -> Iterator[Measure]:
    """The gradient of the mean cross-entropy by every parameter, last with dropout."""
    def read(trial: Trial) -> Figures:
        return trial.backend.loss_and_grads(trial.model, trial.batch)[1]

    noisy = random_case(subject.spec, 3, 21, subject.seed, dropout=True)
    for case in (*edge_cases(subject.spec, subject.seed), noisy):
        yield from compare(subject, case, read, floor=whole_gradient)


def whole_gradient(truth: Figures) -> dict[str, float]:
    """A tensor's gradient is a sum whose terms may cancel; their rounding does not cancel.

    A softmax attention's key bias, for one, has the gradient zero by mathematics, and rounding
    noise of the size of its neighbours' in practice.
    """
    room = ROUNDOFF * norm(np.array([norm(gradient) for gradient in truth.values()]))
    return dict.fromkeys(truth, room)
