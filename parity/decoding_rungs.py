"""The rungs of generation: cached decoding against the full forward, and sampled text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from generate.sampling import Sampler
from parity.budget import Figures, nudged
from parity.cases import Case, random_case
from parity.subject import Measure, Subject, Trial, attempt, compare
from specs.backend import Batch, Decoder
from specs.base import Spec

SAMPLERS = {
    "greedy": Sampler(temperature=0),
    "sampled": Sampler(temperature=1.0, top_p=0.95, repetition_penalty=1.2, seed=1),
}
FORK = 9  # position at which sequences are forked

Road = Callable[[Decoder, np.ndarray], np.ndarray]


def decoding(subject: Subject) -> Iterator[Measure]:
    """Logits through the cache against the referee's full forward, in every state that a decoder
    can keep: token by token, in odd pieces, around chunks, past 500 tokens, forked. And the
    size of the state against the spec's."""
    spec, seed = subject.spec, subject.seed
    window = getattr(spec, "window", None) or 5
    roads = [
        (random_case(spec, 3, window + 18, seed), pieces()),
        (random_case(spec, 2, window + 49, seed), pieces(1, 2, window - 1, 37)),
        (random_case(spec, 1, 260, seed), pieces(255, 1, 1)),
        (random_case(spec, 1, 520, seed), pieces(511)),
        (fork_case(spec, seed), forked),
    ]
    for kind in spec.decode_kinds:
        for case, road in roads:
            named = Case(f"{kind} {case.name}", case.batch)
            yield from compare(subject, named, through_a_cache(kind, road))
        yield state_size(subject, kind)


def through_a_cache(kind: str, road: Road) -> Callable[[Trial], Figures]:
    """A figure for each position, so that the first wrong one shows."""
    def read(trial: Trial) -> Figures:
        tokens = trial.batch.tokens
        if trial.is_referee:
            logits = trial.backend.logits(trial.model, tokens)
        else:
            rows = len(tokens) if road is not forked else len(tokens) - 2
            logits = road(trial.backend.decoder(trial.model, rows, tokens.shape[1], kind), tokens)
        return {f"position {t}": logits[:, t] for t in range(tokens.shape[1])}

    return read


def pieces(*sizes: int) -> Road:
    """Read pieces of these sizes, then token by token."""
    def road(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
        cuts = np.cumsum(sizes, dtype=int)
        start = cuts[-1] if sizes else 0
        read = [decoder.prefill(piece) for piece in np.split(tokens[:, :start], cuts[:-1], axis=1)
                if piece.size]
        stepped = [decoder.step(tokens[:, t])[:, None] for t in range(start, tokens.shape[1])]
        return np.concatenate([*read, *stepped], axis=1)

    return road


def fork_case(spec: Spec, seed: int) -> Case:
    """Five rows, the last two of which begin like the rows 2 and 0, then go other ways."""
    batch = random_case(spec, 5, 21, seed).batch
    batch.tokens[3:, :FORK] = batch.tokens[[2, 0], :FORK]
    return Case("fork", batch)


def forked(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    """Read three rows, fork two of them, go on with all five in turns: none may see another."""
    before = decoder.prefill(tokens[:3, :FORK])
    fork = decoder.fork([2, 0])
    after = []
    for t in range(FORK, tokens.shape[1]):
        branches = fork.step(tokens[3:, t])
        after.append(np.concatenate([decoder.step(tokens[:3, t]), branches])[:, None])
    return np.concatenate([before[[0, 1, 2, 2, 0]], *after], axis=1)


def state_size(subject: Subject, kind: str) -> Measure:
    """What a decoder holds at most, in bytes, is what the spec says."""
    longest = subject.spec.max_length or 140
    case = random_case(subject.spec, 2, min(70, longest // 2), subject.seed)
    rows, T = case.batch.tokens.shape
    truth = rows * subject.spec.decode_state_bytes(2 * T, kind)
    errors = {}
    for name, panel in subject.panels.items():
        decoder = panel.decoder(panel.build(subject.spec, subject.weights), rows, 2 * T, kind)
        decoder.prefill(case.batch.tokens)
        held = []
        for t in range(T):
            decoder.step(case.batch.tokens[:, t])
            held.append(decoder.state_bytes())
        errors[name] = float(abs(max(held) - truth))
    return Measure(Case(f"{kind} {case.name}", case.batch), "state bytes", truth, 0.0, errors)


def sampling(subject: Subject) -> Iterator[Measure]:
    """Text from one seed, two rows at once, through the cache.

    Each token must be one that the referee would have drawn there: the same on both panels,
    but where the referee itself, nudged, hesitates between two.
    """
    length = min(48, subject.spec.block_size)
    case = random_case(subject.spec, 2, 5, subject.seed)
    prompt = case.batch.tokens
    for name, sampler in SAMPLERS.items():
        errors = {}
        for panel, backend in subject.panels.items():
            model = backend.build(subject.spec, subject.weights)
            text = write(backend.decoder(model, len(prompt), length), prompt, length, sampler)
            right = [drawn == text for drawn in redrawn(subject, text, prompt, sampler)]
            errors[panel] = float(np.sum(~np.any(right, axis=0)))
        yield Measure(Case(name, case.batch), "wrong tokens", text.size, 0.0, errors)


def write(decoder: Decoder, prompt: np.ndarray, length: int, sampler: Sampler) -> np.ndarray:
    """The prompts (B, T) continued to (B, length)."""
    text, logits = prompt, decoder.read(prompt)
    for _ in range(length - prompt.shape[1]):
        new = np.array([sampler(*row) for row in zip(logits, text, strict=True)], np.int32)
        text = np.concatenate([text, new[:, None]], axis=1)
        logits = decoder.step(new)
    return text


def redrawn(subject: Subject, text: np.ndarray, prompt: np.ndarray,
            sampler: Sampler) -> Iterator[np.ndarray]:
    """(B, length): the prompt, then what the referee draws after each beginning of the text;
    and what it draws when it is nudged."""
    for weights in (subject.weights, *nudged(subject.weights, subject.seed)):
        trial = attempt(subject.spec, subject.referee, "float64", Batch(text, text), weights)
        logits = trial.backend.logits(trial.model, text)
        drawn = text.copy()
        for row, t in np.ndindex(len(text), text.shape[1] - prompt.shape[1]):
            end = t + prompt.shape[1]
            drawn[row, end] = sampler(logits[row, end - 1], text[row, :end])
        yield drawn
