"""Pictures of a run, drawn from metrics.jsonl alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train import metrics
from train.files import write_bytes

Rows = list[dict[str, Any]]
_PICTURES: dict[str, tuple[tuple[str, str], ...]] = {
    "loss": (("loss", "training"), ("val_loss", "validation")),
    "validation": (("val_bpb", "bits per byte"), ("val_accuracy", "accuracy")),
    "throughput": (("tokens_per_s", "tokens/s"), ("mfu", "share of the matrix-product rate")),
    "rate": (("lr", "learning rate"), ("grad_norm", "gradient norm")),
}


def series(rows: Rows, key: str) -> tuple[list[int], list[Any]]:
    """(steps, values) of the rows that have `key`."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def draw(run: Path) -> list[Path]:
    """Draw RUN/plots/*.png and return their paths; pictures without data are left out."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = metrics.read(run / "metrics.jsonl")
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    drawn = []
    for name, curves in {**_PICTURES, "experts": ()}.items():
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        lines = _loads(rows, axes) if name == "experts" else []
        for number, (key, label) in enumerate(curves):
            steps, values = series(rows, key)
            if not steps:
                continue
            # Quantities of different units have an axis each; the two losses share one.
            axis = axes if number == 0 or name == "loss" else axes.twinx()
            lines += axis.plot(steps, values, f"C{number}", label=label,
                               marker="o" if key.startswith("val") else None, markersize=3)
            axis.set_ylabel("nats per token" if name == "loss" else label)
        drawn += _save(figure, axes, lines, folder / f"{name}.png")
        plt.close(figure)
    return drawn


def _loads(rows: Rows, axes: Any) -> list[Any]:
    """The busiest (full) and the idlest (dotted) expert of each layer."""
    lines: list[Any] = []
    for key in sorted({key for row in rows for key in row if key.startswith("load.")},
                      key=lambda key: int(key.partition(".")[2])):
        steps, loads = series(rows, key)
        colour = f"C{len(lines)}"
        lines += axes.plot(steps, [max(load) for load in loads], colour,
                           label=f"layer {key.partition('.')[2]}")
        axes.plot(steps, [min(load) for load in loads], colour, linestyle=":")
    axes.set_ylabel("busiest and idlest expert, 1 is equal")
    return lines


def _save(figure: Any, axes: Any, lines: list[Any], file: Path) -> list[Path]:
    """Write the picture, unless there is nothing on it."""
    if not lines:
        return []
    axes.set_xlabel("step")
    axes.legend(handles=lines)
    axes.set_title(file.parents[1].name)
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    write_bytes(file, picture.getvalue())
    return [file]


def on_terminal(rows: Rows, keys: tuple[str, ...] = ("loss", "val_loss")) -> None:
    """Draw curves over the steps with characters, for a first look without opening a file."""
    characters([(key, *series(rows, key)) for key in keys], "step")


def characters(curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], x: str) -> None:
    """Draw curves, (label, x, y) each, with characters; those without points are left out."""
    import plotext

    curves = [curve for curve in curves if len(curve[1])]
    if not curves:
        return
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(72, 16)
    for label, xs, ys in curves:
        plotext.plot(xs, ys, label=label)
    plotext.xlabel(x)
    plotext.show()
