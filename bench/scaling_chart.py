"""The picture of bench/scaling.py: all architectures on log axes, small multiples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from bench.exponents import Points, exponent, measured_by, points
from bench.labels import name_ends
from train.files import write_bytes

Line = tuple[str, str, str, Points]  # label, colour, style, length → seconds
TITLES = {"train": "a training step", "prefill": "a prompt read", "decode": "one more token"}


def draw(document: dict[str, Any], path: Path) -> None:
    """A row for each backend; training, prefill, decoding. A line is named where it ends, with its
    exponent; grey lines read all of the text anew for a token."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    backends = sorted({backend for _, backend, _ in measured_by(document)})
    figure, every = plt.subplots(len(backends), 3, figsize=(15, 4.8 * len(backends)),
                                 squeeze=False, sharey="col", layout="constrained")
    for backend, row in zip(backends, every, strict=True):
        for kind, axes in zip(TITLES, row, strict=True):
            lines = lines_of(document, backend, kind)
            if kind == "decode":
                grey = [points(found["anew"]) for _, name, found in measured_by(document)
                        if name == backend]
                for number, measured in enumerate(grey):
                    axes.loglog(list(measured), [s * 1e3 for s in measured.values()], "0.8", lw=1,
                                label="" if number else "all read anew")
                axes.legend(loc="upper left", frameon=False)
            for _, colour, style, measured in lines:
                axes.loglog(list(measured), [s * 1e3 for s in measured.values()], style,
                            color=colour, ms=3)
            axes.set_title(f"{backend}: {TITLES[kind]}")
            axes.set_xlabel("tokens before it" if kind == "decode" else "tokens")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.tick_params(axis="x", labelsize=7)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("milliseconds")
    for backend, row in zip(backends, every, strict=True):
        for kind, axes in zip(TITLES, row, strict=True):
            name_ends(axes, [end_of(line, document["about"]["fit"])
                             for line in lines_of(document, backend, kind)])
    about = document["about"]
    figure.suptitle(f"How cost grows: {about['layers']} layers of {about['width']}, one text, "
                    f"float32, {about['chip']}; T^p fitted from {about['fit']:,} tokens on")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    write_bytes(path, picture.getvalue())


def lines_of(document: dict[str, Any], backend: str, kind: str) -> list[Line]:
    """The lines of a panel; an architecture has one colour in all of them."""
    names = sorted({arch for arch, _, _ in measured_by(document)})
    lines: list[Line] = []
    for arch, name, found in measured_by(document):
        if name != backend:
            continue
        colour = f"C{names.index(arch)}"
        if kind != "decode":
            lines.append((arch, colour, "o-", points(found[kind])))
            continue
        for number, (state, figures) in enumerate(found["decode"].items()):
            label = arch if len(found["decode"]) == 1 else f"{arch}, {state}"
            figure = "mean" if state == "online" else "seconds"
            lines.append((label, colour, ("o-", "s--")[number % 2], points(figures, figure)))
    return [line for line in lines if line[3]]


def end_of(line: Line, least: int) -> tuple[float, float, str, str]:
    """Where a line ends, its name with the exponent, its colour."""
    label, colour, _, measured = line
    fitted = exponent(measured, least)
    return (max(measured), measured[max(measured)] * 1e3,
            f"{label} T^{fitted[0]:.2f}" if fitted else label, colour)
