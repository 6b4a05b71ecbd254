"""Texts that grow from one token, from what decoding keeps and with all of it read again for each
token: four of them by 128, as Toeplitz mixers were published.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from specs import Spec, init_weights
from specs.backend import Backend, Model
from train.study.timing import Cases, Figures, Work, in_turn, quartiles

TEXTS, TOKENS = 4, 128
READ = range(8, TOKENS, 16)  # the lengths at which reading anew is timed
ROUNDS = 3, 8
ANEW, IN_TURN = "anew", "sequential heads, anew"


def written(backend: Backend, specs: Mapping[str, Spec]) -> dict[str, dict[str, list[float]]]:
    """Tokens/s of each spec, in each round: from each kind of state, reading `ANEW`, and for
    toeplitz with its heads `IN_TURN`."""
    every = {name: ways(backend, spec) for name, spec in specs.items()}
    seconds = in_turn({f"{name} {way}": work for name, works in every.items()
                       for way, work in works.items()}, ROUNDS)
    return {name: {way: [TEXTS * (TOKENS if way in specs[name].decode_kinds else len(READ)) / each
                         for each in seconds[f"{name} {way}"]] for way in works}
            for name, works in every.items()}


def ways(backend: Backend, spec: Spec) -> dict[str, Work]:
    model = backend.build(spec, init_weights(spec))
    made: dict[str, Work] = {kind: partial(keeping, backend, model, kind)
                             for kind in spec.decode_kinds}
    made[ANEW] = partial(anew, backend, model, spec.vocab_size)
    if spec.arch == "toeplitz":
        made[IN_TURN] = partial(heads_in_turn, backend, model, spec.vocab_size)
    return made


def keeping(backend: Backend, model: Model, kind: str) -> None:
    decoder = backend.decoder(model, TEXTS, TOKENS, kind)
    for _ in range(TOKENS):
        decoder.step(np.ones(TEXTS, np.int32))


def anew(backend: Backend, model: Model, vocab_size: int) -> None:
    rows = np.random.default_rng(0).integers(0, vocab_size, (TEXTS, TOKENS)).astype(np.int32)
    for length in READ:
        backend.logits(model, rows[:, :length])


def heads_in_turn(backend: Backend, model: Any, vocab_size: int) -> None:
    mixes = [layer.mixer.mix for layer in model.layers]
    for mix in mixes:
        mix.heads = mix.sequential
    anew(backend, model, vocab_size)
    for mix in mixes:
        mix.heads = mix.parallel


def writing(backend: Backend, cases: Cases) -> Figures:
    """For each case the median tokens/s of each way, and how many times as fast all heads at once
    are as one after the other, with the quartiles."""
    found = written(backend, {name: spec for name, (spec, _) in cases.items()})
    return {name: {"rates": {way: median(each) for way, each in rates.items()},
                   "faster": quartiles([one / other for one, other in zip(
                       rates[ANEW], rates[IN_TURN], strict=True)])}
            for name, rates in found.items()}
