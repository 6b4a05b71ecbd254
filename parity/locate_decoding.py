"""Where cached decoding parts from the full forward: the first module that gives something else
for a position than it gives when it reads the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from parity.budget import Figures
from parity.cases import Case
from parity.locate import Divergence, forward
from parity.subject import Subject, Trial, compare
from specs.backend import Arrays, Call


def locate_decoding(subject: Subject, case: Case, suspects: Iterable[str]) -> list[Divergence]:
    """The first divergence of each suspected panel, in any state that a decoder can keep."""
    found = {}
    for kind in subject.spec.decode_kinds:
        passing = {measure.name: measure
                   for measure in compare(subject, case, in_pieces(kind))}
        paths = [name.removesuffix(" output") for name in passing if name.endswith(" output")]
        for panel in suspects:
            divergence = forward(panel, paths, None, passing)
            if divergence and panel not in found:
                found[panel] = dataclasses.replace(divergence, direction="decoding")
    return list(found.values())


def in_pieces(kind: str) -> Callable[[Trial], Figures]:
    """What goes in and out of every module, and the logits: on the referee for the whole, else
    token by token, but for the first two and the last three, which are read at once."""
    def read(trial: Trial) -> Figures:
        tokens = trial.batch.tokens
        T = tokens.shape[1]
        pieces = np.split(tokens, sorted({min(2, T), *range(2, T - 2), max(T - 3, 0)}), axis=1)
        decoder, other = (trial.backend.decoder(trial.model, len(tokens), T, kind)
                          for _ in range(2))
        pieces = [piece for piece in pieces if piece.size]
        found = figures([decoder.trace(piece) for piece in pieces],
                        [piece.shape[1] for piece in pieces])
        if trial.is_referee:
            whole = figures([trial.backend.trace(trial.model, trial.batch)], [T])
            same = {name: value for name, value in whole.items()
                    if name in found and value.shape == found[name].shape}
            return {**same,
                    "logits": trial.backend.logits(trial.model, tokens)}
        return {**found,
                "logits": np.concatenate([other.prefill(piece) for piece in pieces], axis=1)}

    return read


def figures(pieces: list[list[Call]], lengths: list[int]) -> Figures:
    """The floats of each module, those of all pieces joined where they go with the tokens: along
    axis −2 in every architecture. Left out is what not every piece calls, and what goes with the
    tokens that are held: a few tokens behind many may take another way than all at once. So is, by
    the referee, what decoding computes for more tokens than there are, as hyena's filters."""
    joined: Arrays = {}
    by_path = [{call.path: call for call in calls} for calls in pieces]
    for path in by_path[0]:
        calls = [piece[path] for piece in by_path if path in piece]
        if len(calls) < len(pieces):
            continue
        for name, parts in [*((f"{path} input {i}", [call.inputs[i] for call in calls])
                              for i in range(len(calls[0].inputs))),
                            (f"{path} output", [call.output for call in calls])]:
            if not isinstance(parts[0], np.ndarray) or parts[0].dtype.kind != "f":
                continue
            rows = [part.shape[-2] for part in parts]
            if rows == lengths:
                joined[name] = np.concatenate(parts, -2)
            elif len(set(rows)) == 1:
                joined[name] = parts[0]
    return joined
