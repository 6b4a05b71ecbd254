"""What one architecture costs on one backend, at growing lengths: bench/scaling.py's measurements.

A point is one kind of work at one length. Its first call is a warm-up, and tells what it needs;
then all lengths are timed in turn, some rounds. A point that would need more time or memory than
it may, by what the two shorter ones needed, is left out, and so is what is longer.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np

from bench.trial import held
from specs import Spec, init_weights, spec_type
from specs.backend import (
    Arrays,
    Backend,
    Batch,
    Decoder,
    Model,
    OptimizerSettings,
    device_of,
    load_backend,
)
from train.study.writing import TOKENS, written

# A size near that of the others, where the defaults are of another.
FIELDS: dict[str, Mapping[str, Any]] = {"bdh": {"mlp_internal_dim_multiplier": 16},
                                        "moe": {"d_ff": 128}}
PROBES = 256, 512  # tokens of the texts whose state shows what grows with the context
CALLED = 0.1  # seconds for which a short piece of work is called again and again
WARM_UP = 4  # tokens
LEAST = 16  # tokens timed
TURNS = 32  # in which they are decoded: each context sees the machine at all times
STATE_SHARE = 4  # a state may take this part of the memory: it grows by being copied
DECODED_SHARE = 4  # the tokens behind one context may take this part of the limit
Figures = dict[str, dict[str, Any]]  # length → figures, or why there are none


def spec_of(arch: str, layers: int, width: int, block_size: int, vocab_size: int = 256) -> Spec:
    """The architecture at this size, the other fields at their defaults, but without dropout."""
    return spec_type(arch)(n_layer=layers, n_embd=width, block_size=block_size, dropout=0.0,
                           vocab_size=vocab_size, **FIELDS.get(arch, {}))


def measure(args: argparse.Namespace, arch: str, name: str) -> dict[str, Any]:
    """All figures of one architecture on one backend."""
    backend = load_backend(name, device_of(name, args.device))
    found: dict[str, Any] = {kind: over_lengths(backend, args, arch, kind) for kind in WORKS}
    found["decode"] = over_contexts(backend, args, arch)
    found["generation"] = generation(backend, args, arch)
    return {**found, "versions": backend.versions()}


def drawn(rows: int, T: int, vocab_size: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (rows, T)).astype(np.int32)


def training(backend: Backend, model: Model, T: int) -> Callable[[], object]:
    trainer = backend.trainer(model, OptimizerSettings())
    rows = drawn(1, T + 1)

    def step() -> None:
        trainer.step([Batch(rows[:, :-1], rows[:, 1:])], 1e-4)
        trainer.read()

    return step


def prefill(backend: Backend, model: Model, T: int) -> Callable[[], object]:
    return lambda: backend.decoder(model, 1, T).prefill(drawn(1, T))


def anew(backend: Backend, model: Model, T: int) -> Callable[[], object]:
    """What each token costs without a cache."""
    return lambda: backend.logits(model, drawn(1, T))


WORKS = {"train": training, "prefill": prefill, "anew": anew}


def over_lengths(backend: Backend, args: argparse.Namespace, arch: str, kind: str) -> Figures:
    """Seconds of a call (median over rounds), their spread, and bytes that it adds at its peak."""
    works: dict[int, Callable[[], object]] = {}
    needs: dict[int, tuple[float, int]] = {}
    figures: Figures = {}
    for T in args.lengths:
        reason = beyond(args, needs, T)
        if reason:
            figures[str(T)] = {"left out": reason}
            continue
        spec = spec_of(arch, args.layers, args.width, T)
        before = held(backend)
        works[T] = WORKS[kind](backend, backend.build(spec, init_weights(spec)), T)
        start = time.perf_counter()
        works[T]()
        needs[T] = time.perf_counter() - start, max(1, backend.peak_memory() - before)
    seconds: dict[int, list[float]] = {T: [] for T in works}
    for _ in range(args.rounds):
        for T, work in works.items():
            calls = max(1, int(CALLED / needs[T][0]))
            start = time.perf_counter()
            for _ in range(calls):
                work()
            seconds[T].append((time.perf_counter() - start) / calls)
    for T, each in seconds.items():
        figures[str(T)] = {"seconds": median(each), "bytes": needs[T][1],
                           "spread": (max(each) - min(each)) / median(each)}
    return {str(T): figures[str(T)] for T in args.lengths}


def beyond(args: argparse.Namespace, needs: Mapping[int, tuple[float, int]], T: int) -> str | None:
    """"time" or "memory" if the point T is expected to need more than it may, else None.

    Expected is what the longest so far needed, growing on as it grew, at least as T and at most
    as T².
    """
    if len(needs) < 2:
        return None
    before, last = list(needs)[-2:]
    limits = {"time": args.limit / (1 + args.rounds), "memory": args.memory * 2**30}
    for (reason, most), now, then in zip(limits.items(), needs[last], needs[before], strict=True):
        power = math.log(now / then) / math.log(last / before)
        if now * (T / last) ** min(2, max(1, power)) > most:
            return reason
    return None


def over_contexts(backend: Backend, args: argparse.Namespace, arch: str) -> dict[str, Figures]:
    """For each kind of state: seconds of a token (median, mean, 99th percentile, largest)."""
    spec = spec_of(arch, args.layers, args.width, 2 * max(*args.contexts, *PROBES, args.tokens))
    model = backend.build(spec, init_weights(spec))
    return {kind: decoding(backend, args, model, spec, kind) for kind in spec.decode_kinds}


def decoding(backend: Backend, args: argparse.Namespace, model: Model, spec: Spec,
             kind: str) -> Figures:
    """Decoders behind each context, in turn, some tokens each time; in all a power of two, for what
    is done once in so many tokens, and fewer where these take too long."""
    figures: Figures = {}
    decoders: dict[int, Decoder] = {}
    counts: dict[int, int] = {}
    short, long = (probe(backend, model, spec, kind, T) for T in PROBES)
    for T in args.contexts:
        if spec.decode_state_bytes(T, kind) > args.memory * 2**30 / STATE_SHARE:
            figures[str(T)] = {"left out": "memory"}
            continue
        decoder = backend.decoder(model, 1, spec.block_size, kind)
        decoder.load_state(grown(short, long, T))
        steps(decoder, 1)  # makes its filters
        token, count = steps(decoder.fork([0]), WARM_UP)[-1], args.tokens
        while count * token > args.limit / DECODED_SHARE:
            count //= 2
        if count < min(LEAST, args.tokens):
            figures[str(T)] = {"left out": "time"}
            continue
        decoders[T], counts[T] = decoder, count
    seconds: dict[int, list[float]] = {T: [] for T in decoders}
    for number in range(TURNS):
        for T, decoder in decoders.items():
            share = counts[T] * (number + 1) // TURNS - counts[T] * number // TURNS
            seconds[T] += steps(decoder, share)
    for T, each in seconds.items():
        more = rare(decoders[T], T, len(each), median(each)) if kind == "online" else 0.0
        figures[str(T)] = {
            "seconds": median(each), "mean": float(np.mean(each)) + more, "largest": max(each),
            "p99": float(np.percentile(each, 99)), "tokens": len(each),
            "bytes": spec.decode_state_bytes(T, kind)}
    return {str(T): figures[str(T)] for T in args.contexts}


def rare(decoder: Decoder, T: int, N: int, usual: float) -> float:
    """Seconds a token of what an online convolution does less often than once in the N tokens that
    were timed behind T: at each odd multiple of U, a power of two from 2N to T/2. The tokens
    before one such are read at once."""
    more, U = 0.0, 2 * N
    while U <= T // 2:
        decoder.read(drawn(1, T + U - 1 - decoder.offset))
        more += max(0.0, steps(decoder, 1)[0] - usual) / (2 * U)
        U *= 2
    return more


def steps(decoder: Decoder, count: int) -> list[float]:
    """Seconds of each of so many tokens."""
    token, seconds = np.array([1], np.int32), []
    for _ in range(count):
        start = time.perf_counter()
        decoder.step(token)
        seconds.append(time.perf_counter() - start)
    return seconds


def probe(backend: Backend, model: Model, spec: Spec, kind: str, T: int) -> Arrays:
    """The state behind a text of T tokens."""
    decoder = backend.decoder(model, 1, spec.block_size, kind)
    decoder.read(drawn(1, T))
    return decoder.state()


def grown(short: Arrays, long: Arrays, T: int) -> Arrays:
    """A state of T tokens, a power of two, by those of two shorter powers of two: an axis that
    differs between these is a linear function of the tokens, and filled by repeating `long`."""
    few, many = int(short["offset"]), int(long["offset"])
    state = {"offset": np.array(T)}
    for name, array in long.items():
        if name == "offset":
            continue
        for axis, (a, b) in enumerate(zip(short[name].shape, array.shape, strict=True)):
            if a != b:
                size = a + (b - a) * (T - few) // (many - few)
                array = np.take(array, np.arange(size) % b, axis)
        state[name] = array
    return state


def generation(backend: Backend, args: argparse.Namespace, arch: str) -> dict[str, float]:
    """Tokens/s of growing texts, for each kind of state and without any."""
    layers, width, vocab_size = args.generation
    spec = spec_of(arch, layers, width, 4 * TOKENS, vocab_size)
    return {way: median(rates) for way, rates in written(backend, {arch: spec})[arch].items()}
