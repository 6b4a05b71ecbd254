"""The arithmetic of bench/scaling.py: exponents, the aims, and the tables that show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bench.pages import Sheet

Points = dict[int, float]
LINEAR = {"mamba2": 1.1, "retnet": 1.1, "rwkv7": 1.1, "bdh": 1.1, "hyena": 1.25, "toeplitz": 1.25}
FLAT = 0.05  # by which decoding from a state of constant size may differ between contexts
ONLINE = 2.0  # times that a token at the longest context may cost with an online convolution
CACHED = 5.0  # times as fast as reading anew, at least; the published code had 1.3
CONVOLUTIONS = ("hyena", "toeplitz")
WORDS = {"train": "a training step", "prefill": "prefill", "anew": "all of it anew"}


def points(figures: Mapping[str, Mapping[str, Any]], name: str = "seconds") -> Points:
    """Length → figure, of what was measured."""
    return {int(T): found[name] for T, found in figures.items() if name in found}


def exponent(measured: Points, least: int) -> tuple[float, int, int] | None:
    """(p, shortest, longest) of the least-squares line p·log T + c through the logarithms of all
    points from `least` on; None for fewer than two."""
    fitted = {T: value for T, value in measured.items() if least <= T}
    if len(fitted) < 2:
        return None
    slope, _ = np.polyfit(np.log(list(fitted)), np.log(list(fitted.values())), 1)
    return float(slope), min(fitted), max(fitted)


def shown(measured: Points, least: int) -> str:
    """The exponent, and its range where this is not the whole one."""
    found = exponent(measured, least)
    return "" if found is None else f"{found[0]:.2f} ({found[1]:,} … {found[2]:,})"


def measured_by(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(architecture, backend, figures) of all that was measured, one backend after the other."""
    for name in sorted(document["measured"], key=lambda name: name.split()[::-1]):
        arch, backend = name.split()
        yield arch, backend, document["measured"][name]


def milliseconds(found: Mapping[str, Any], name: str = "seconds") -> str:
    if name not in found:
        return found.get("left out", "")
    return f"{found[name] * 1e3:,.3g}" if found[name] < 0.1 else f"{found[name] * 1e3:,.0f}"


def sheets(document: dict[str, Any], backend: str) -> list[Sheet]:
    """All tables of one backend."""
    about = document["about"]
    here = [(arch, found) for arch, name, found in measured_by(document) if name == backend]
    made = []
    for kind in ("train", "prefill", "anew"):
        rows = [[arch, *(milliseconds(found[kind][str(T)]) for T in about["lengths"]),
                 shown(points(found[kind]), about["fit"]), megabytes(found[kind])]
                for arch, found in here]
        made.append((f"{backend}: {WORDS[kind]}, ms at a length",
                     ["", *(f"{T:,}" for T in about["lengths"]), "exponent", "MB at most"], rows))
    kinds = [(arch, kind, figures) for arch, found in here
             for kind, figures in found["decode"].items()]
    made.append((f"{backend}: a decoded token behind a context, ms (median)",
                 ["", *(f"{T:,}" for T in about["contexts"]), "exponent"],
                 [[f"{arch}, {kind}", *(milliseconds(figures[str(T)]) for T in about["contexts"]),
                   shown(points(figures), about["fit"])] for arch, kind, figures in kinds]))
    ends = min(about["contexts"]), max(about["contexts"])
    made.append((f"{backend}: a decoded token, ms behind {ends[0]:,} and {ends[1]:,}",
                 ["", "mean", "99th percentile", "mean", "99th percentile", "state, MB", "tokens"],
                 [[f"{arch}, {kind}",
                   *(milliseconds(figures[str(T)], name) for T in ends for name in ("mean", "p99")),
                   f"{figures[str(ends[1])].get('bytes', 0) / 1e6:,.1f}",
                   f"{figures[str(ends[1])].get('tokens', '')}"]
                  for arch, kind, figures in kinds]))
    made.append((f"{backend}: generation, tokens/s", ["", "tokens/s", "anew", "times"],
                 [[f"{arch}, {kind}", f"{rate:,.0f}", f"{found['generation']['anew']:,.0f}",
                   f"{rate / found['generation']['anew']:.1f}"]
                  for arch, found in here
                  for kind, rate in found["generation"].items() if kind != "anew"]))
    return made


def megabytes(figures: Mapping[str, Mapping[str, Any]]) -> str:
    measured = points(figures, "bytes")
    return f"{measured[max(measured)] / 1e6:,.0f}" if measured else ""


def aims(document: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """(what is aimed at, what was measured, whether the aim is kept), where it was measured."""
    least = document["about"]["fit"]
    for arch, backend, found in measured_by(document):
        fitted = exponent(points(found["train"]), least)
        if arch in LINEAR and fitted:
            p, shortest, longest = fitted
            yield (f"{arch}, {backend}: training cost exponent at most {LINEAR[arch]}",
                   f"{p:.4f} from {shortest:,} to {longest:,}", p <= LINEAR[arch])
        for kind, figures in found["decode"].items():
            if kind == "recurrent":
                yield from flat(f"{arch}, {backend}", points(figures))
            elif kind == "online":
                yield from online(f"{arch}, {backend}", points(figures, "mean"))
        if arch in CONVOLUTIONS:
            rates = found["generation"]
            times = max(rates[kind] for kind in found["decode"]) / rates["anew"]
            yield (f"{arch}, {backend}: generation at least {CACHED:g} times as fast as reading "
                   "anew", f"{times:.1f} times", times >= CACHED)


def flat(who: str, medians: Points) -> Iterator[tuple[str, str, bool]]:
    if len(medians) < 2:
        return
    first, last = min(medians), max(medians)
    apart = max((value / medians[first] - 1 for value in medians.values()), key=abs)
    yield (f"{who}: a decoded token costs the same to {FLAT:.0%} from {first:,} to {last:,}",
           f"{apart:+.1%} at most", abs(apart) <= FLAT)


def online(who: str, means: Points) -> Iterator[tuple[str, str, bool]]:
    if len(means) < 2:
        return
    first, last = min(means), max(means)
    times = means[last] / means[first]
    yield (f"{who}: a decoded token at {last:,} costs at most {ONLINE:g} times one at {first:,}, "
           "on average", f"{times:.2f} times", times <= ONLINE)
