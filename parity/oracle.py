"""Independent oracles: figures that the original implementation of an architecture produced.

Twins can be wrong together; an oracle cannot be wrong with them. A file (.npz) holds `arch`,
`source`, `config` (JSON of spec fields), `param.*`, `tokens`, `targets`, `logits`, `loss`,
`grad.*` (rounded to float32), `greedy_prompt`, `greedy_tokens`.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from generate.sampling import Sampler
from parity.budget import ROUNDOFF, ROUNDOFF64, Figures, distance, judge, norm
from parity.cases import Case
from parity.decoding_rungs import write
from parity.ladder import Result, result
from parity.rungs import loss_rounding, whole_gradient
from parity.subject import Measure, Subject, Trial, attempt
from specs import UserError, spec_type
from specs.backend import Arrays, Batch, load_strictly
from specs.base import Spec

PARTS = ("arch", "source", "config", "tokens", "targets", "logits", "loss", "greedy_prompt",
         "greedy_tokens")


@dataclass(frozen=True)
class Oracle:
    """One file. `figures` are what is to be reproduced: logits, loss, gradients by name."""

    source: str
    spec: Spec
    weights: Arrays
    batch: Batch
    figures: Figures
    prompt: np.ndarray
    text: np.ndarray


def read_oracle(file: Path) -> Oracle:
    """Raises `UserError` for a file that is missing, damaged, or no oracle."""
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise UserError(f"{file} is damaged, or no .npz file") from None
    for name in PARTS:
        if name not in arrays:
            raise UserError(f"{file} is no oracle: it lacks {name!r}; it needs {', '.join(PARTS)}, "
                            "param.* and grad.*")
    try:
        config = json.loads(str(arrays["config"]))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{file}: its config must be a JSON object of spec fields")
    spec = spec_type(str(arrays["arch"])).from_dict(config)
    weights = load_strictly(spec, named("param.", arrays), str(file))
    gradients = load_strictly(spec, named("grad.", arrays), f"{file} (gradients)")
    tokens, targets, prompt, text = (arrays[name].astype(np.int32) for name in (
        "tokens", "targets", "greedy_prompt", "greedy_tokens"))
    if any(ids.min(initial=0) < 0 or ids.max(initial=0) >= spec.vocab_size
           for ids in (tokens, targets, prompt, text)):
        raise UserError(f"{file}: a token lies outside the vocabulary of {spec.vocab_size}")
    if (tokens.ndim != 2 or targets.shape != tokens.shape or prompt.ndim != 2 or text.ndim != 2
            or arrays["logits"].shape != (*tokens.shape, spec.vocab_size)):
        raise UserError(f"{file}: tokens, targets, logits and greedy texts must have the shapes "
                        "(B, T), (B, T), (B, T, vocab_size), (B, T)")
    return Oracle(str(arrays["source"]), spec, weights, Batch(tokens, targets), {
        "logits": arrays["logits"], "loss": arrays["loss"], **gradients}, prompt, text)


def reproduce(subject: Subject, oracle: Oracle) -> Iterator[Result]:
    """The rungs of an oracle; `subject` holds its spec and weights."""
    for name, measuring in (("referee", referee), ("panels", panels), ("greedy text", greedy)):
        yield result(subject, name, measuring(subject, oracle))


def named(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items()
            if name.startswith(prefix)}


def figures(trial: Trial) -> Figures:
    loss, gradients = trial.backend.loss_and_grads(trial.model, trial.batch)
    return {"logits": trial.backend.logits(trial.model, trial.batch.tokens),
            "loss": np.array(loss), **gradients}


def rounding(truth: Figures) -> dict[str, float]:
    gradients = {name: value for name, value in truth.items() if name not in ("logits", "loss")}
    return {"logits": ROUNDOFF * norm(truth["logits"]),
            "loss": loss_rounding(truth["logits"], truth["loss"]), **whole_gradient(gradients)}


def panels(subject: Subject, oracle: Oracle) -> Iterator[Measure]:
    """Logits, loss and gradients of both panels against the oracle's own."""
    budget = {name: room + stored(oracle, name) for name, room in budgets(subject, oracle).items()}
    yield from against(oracle, budget, {name: figures(attempt(
        subject.spec, panel, "float32", oracle.batch, subject.weights))
        for name, panel in subject.panels.items()})


def referee(subject: Subject, oracle: Oracle) -> Iterator[Measure]:
    """The referee against the oracle: the same budgets, in units of float64's roundoff."""
    budget = {name: room * ROUNDOFF64 / ROUNDOFF + stored(oracle, name)
              for name, room in budgets(subject, oracle).items()}
    trial = attempt(subject.spec, subject.referee, "float64", oracle.batch, subject.weights)
    yield from against(oracle, budget, {"torch": figures(trial)})


def budgets(subject: Subject, oracle: Oracle) -> Mapping[str, float]:
    return judge(lambda aside: figures(attempt(
        subject.spec, subject.referee, "float64", oracle.batch, aside)),
        subject.weights, subject.seed, rounding).budget


def stored(oracle: Oracle, name: str) -> float:
    """Rounding of the figure as the file holds it: gradients are in float32."""
    value = oracle.figures[name]
    return ROUNDOFF * norm(value) if value.dtype == np.float32 else 0.0


def against(oracle: Oracle, budget: Mapping[str, float],
            found: Mapping[str, Figures]) -> Iterator[Measure]:
    case = Case("oracle", oracle.batch)
    for name, truth in oracle.figures.items():
        errors = {side: distance(figures[name], truth) for side, figures in found.items()}
        yield Measure(case, name, norm(truth), budget[name], errors)


def greedy(subject: Subject, oracle: Oracle) -> Iterator[Measure]:
    """The oracle's greedy text, written through every kind of cache."""
    rows, length = oracle.text.shape
    for kind in subject.spec.decode_kinds:
        errors = {}
        for name, panel in subject.panels.items():
            model = panel.build(subject.spec, subject.weights)
            text = write(panel.decoder(model, rows, length, kind), oracle.prompt, length,
                         Sampler(temperature=0))
            errors[name] = float(np.sum(text != oracle.text))
        yield Measure(Case(kind, oracle.batch), "wrong tokens", oracle.text.size, 0.0, errors)
