"""The losses of several runs in one picture, or in one for each of the axes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from train.curves import AXES, Curve, History, measure

# Each at least 4 to 1 against white and against a dark page; runs also differ by marker or dashes.
COLOURS = ("#2f7fd6", "#c9600f", "#2b8a4b", "#d0455a", "#8f62d0", "#178a9e", "#c04fa0", "#857a12")
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
INK = "#010203"  # of text and frames in an SVG, which the page replaces by its own colour


def picture(histories: list[History], smooth: float, format: str) -> bytes:
    """One picture of all AXES on a white ground."""
    pyplot = _pyplot()
    figure, all_axes = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained", sharey=True)
    for axes, axis in zip(all_axes.flat, AXES, strict=True):
        _draw(axes, histories, axis, smooth)
    for axes in all_axes[:, 1]:
        axes.set_ylabel("")
    handles, labels = all_axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return _saved(figure, format)


def svg(histories: list[History], axis: str, smooth: float) -> str:
    """One of the AXES as an <svg> element for a page of either colour scheme."""
    pyplot = _pyplot()
    ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color",
                         "ytick.color", "grid.color"), INK)
    with pyplot.rc_context({**ink, "svg.fonttype": "none", "svg.hashsalt": axis,
                            "font.family": "sans-serif"}):
        figure, axes = pyplot.subplots(figsize=(7, 4.5 + 0.2 * len(histories)),
                                       layout="constrained")
        _draw(axes, histories, axis, smooth)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        text = _saved(figure, "svg", transparent=True).decode()
    text = text[text.index("<svg"):].replace(INK, "currentColor")
    return _own_names(text, axis).replace(
        "<svg", f'<svg role="img" aria-label="Loss against {axis}"', 1)


def _own_names(svg: str, prefix: str) -> str:
    """Names that no other drawing on the page has: those that are referred to, no others."""
    used = set(re.findall(r'#([\w.-]+)["\)]', svg))
    svg = re.sub(r' id="([^"]*)"', lambda name: f' id="{prefix}-{name[1]}"'
                 if name[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def _draw(axes: Any, histories: list[History], axis: str, smooth: float) -> None:
    keys, unit = measure(histories)
    scale, name = _time_unit(histories) if axis == "time" else (1.0, axis)
    heights: list[np.ndarray] = []
    for number, history in enumerate(histories):
        look = {"color": COLOURS[number % len(COLOURS)],
                "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}
        for key, what in keys.items():
            curve = history.curve(key, axis)
            if not len(curve.y):
                continue
            label = f"{history.name}, {what}"
            if what == "validation":
                axes.plot(curve.x / scale, curve.y, marker=MARKERS[number % len(MARKERS)],
                          markersize=4, label=label, **look)
            else:
                axes.plot(curve.x / scale, curve.y, linewidth=0.7, alpha=0.25, **look)
                curve = curve.smoothed(smooth)
                axes.plot(curve.x / scale, curve.y, linewidth=1.2, alpha=0.8, label=label, **look)
            heights.append(_settled(curve))
    values = np.concatenate(heights)
    room = 0.05 * (values.max() - values.min()) or 0.05
    axes.set_ylim(values.min() - room, values.max() + room)
    axes.set_xlabel(name)
    axes.set_ylabel(unit)
    axes.grid(alpha=0.15)
    if axis in ("tokens", "FLOPs"):
        from matplotlib.ticker import EngFormatter

        axes.xaxis.set_major_formatter(EngFormatter())


def _settled(curve: Curve) -> np.ndarray:
    """Where the picture must reach: the curve without its first tenth, which falls too steeply."""
    return curve.y[len(curve.y) // 10:]


def _time_unit(histories: Iterable[History]) -> tuple[float, str]:
    """(seconds, name) of the unit in which the longest run has a handy number."""
    longest = max(row["elapsed"] for history in histories for row in history.rows)
    for seconds, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if longest >= 2 * seconds:
            return seconds, name
    return 1.0, "seconds"


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _saved(figure: Any, format: str, **options: Any) -> bytes:
    from matplotlib import pyplot

    content = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else None
    figure.savefig(content, format=format, dpi=120, metadata=metadata, **options)
    pyplot.close(figure)
    return content.getvalue()
