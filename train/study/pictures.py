"""The pictures of an experiment: one to be understood at a glance, and curves for each rate."""

from __future__ import annotations

import io
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from train import metrics
from train.files import write_bytes
from train.plots import series
from train.study.figures import Figure, Row, best_rows, probed, rows
from train.study.plan import Kind, Plan
from train.study.report import TITLES

Panel = tuple[str, dict[str, Figure]]  # heading, {setup: figure}
CURVES = (("loss", "training loss, nats"), ("val_loss", "held-out loss, nats"),
          ("val_accuracy", "held-out accuracy"), ("tokens_per_s", "tokens/s"))


def colours(plan: Plan) -> dict[str, Any]:
    """The same for a setup in every picture."""
    from matplotlib import colormaps

    some = colormaps["tab10" if len(plan.setups) <= 10 else "tab20"].colors  # type: ignore
    return {name: some[number % len(some)] for number, name in enumerate(plan.setups)}


def draw(plan: Plan, runs: Path, folder: Path) -> list[Path]:
    """Write all pictures into `folder`; their paths."""
    import matplotlib

    matplotlib.use("agg")
    every = rows(plan)
    drawn = [overview(plan, folder / "overview.png")]
    if best_rows(every, plan.kinds[0]):
        drawn.append(quality(plan, every, folder / "quality.png"))
    for kind in plan.kinds:
        if plan.experiment.choose:
            drawn.append(curves(plan, runs, kind, every, folder / f"curves-{kind}.png"))
        else:
            for lr in sorted({row.lr for row in every}):
                same = [row for row in every if row.lr == lr]
                drawn.append(curves(plan, runs, kind, same, folder / f"curves-{kind}-lr{lr:g}.png"))
    return drawn


def panels(plan: Plan, every: list[Row]) -> list[Panel]:
    """What is shown of each setup, at the learning rate that is best for it."""
    found: list[Panel] = []
    for kind in plan.kinds:
        best = {row.setup: row for row in best_rows(every, kind)}
        found.append((f"held-out loss,\n{TITLES[kind]}",
                      {name: row.loss[kind] for name, row in best.items()}))
    found.append(("training,\ntokens/s", {row.setup: exact(plan.speed(row.setup))
                                          for row in every if row.rate}))
    found.append(("memory of\na step, MB", {
        name: exact(probed(plan, name)["memory"] / 1e6) for name in plan.setups
        if "memory" in probed(plan, name)}))
    for length in plan.experiment.contexts:
        found.append((f"decoding behind\n{length}, tokens/s", {
            name: exact(probed(plan, name)["decoding"][str(length)]) for name in plan.setups
            if str(length) in probed(plan, name).get("decoding", {})}))
    return [(heading, figures) for heading, figures in found if figures]


def exact(value: float) -> Figure:
    return Figure(value, value, value)


def overview(plan: Plan, file: Path) -> Path:
    """A line for each setup, the best at the top; a panel for each quantity, its best in bold."""
    from matplotlib import pyplot as plt

    every = rows(plan)
    ranked = [row.setup for row in best_rows(every, plan.kinds[0])]
    names = [*ranked, *(name for name in plan.setups if name not in ranked)]
    shown, colour = panels(plan, every), colours(plan)
    figure, axes = plt.subplots(1, len(shown), figsize=(2 + 2.3 * len(shown),
                                                        1.3 + 0.42 * len(names)),
                                sharey=True, squeeze=False, layout="constrained")
    for axis, (heading, figures) in zip(axes[0], shown, strict=True):
        loss, low = heading.startswith("held-out"), not heading.endswith("tokens/s")
        even = [name for name in figures if not loss or plan.setups[name].share == 1] or figures
        best = (min if low else max)(even, key=lambda name: figures[name].middle)
        for name, found in figures.items():
            place, weight = names.index(name), "bold" if name == best else "normal"
            text = f"{found.middle:.3f}" if loss else f"{found.middle:,.0f}"
            if loss:
                axis.errorbar(found.middle, place, xerr=[[found.middle - found.low],
                                                         [found.high - found.middle]],
                              fmt="o", color=colour[name], capsize=3)
                axis.annotate(text, (found.middle, place), (0, 6), textcoords="offset points",
                              ha="center", fontsize=8, weight=weight)
            else:
                axis.barh(place, found.middle, 0.6, color=colour[name], alpha=0.6)
                axis.annotate(text, (0, place), (4, 0), textcoords="offset points", va="center",
                              fontsize=8, weight=weight)
        axis.set_title(heading + (" ←" if low else " →"), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.2 if loss else 0.05)
        axis.grid(axis="x", alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    losses = [axis for axis, (heading, _) in zip(axes[0], shown, strict=True)
              if heading.startswith("held-out")]
    limits = [limit for axis in losses for limit in axis.get_xlim()]
    for axis in losses:
        axis.set_xlim(min(limits), max(limits))
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].set_ylim(len(names) - 0.5, -0.7)
    figure.suptitle(f"{plan.experiment.question}  (← less is better, → more; best in bold)",
                    fontsize=10)
    return save(figure, file)


def quality(plan: Plan, every: list[Row], file: Path) -> Path:
    """Loss against the speed of training and of decoding; what is lower and further right of
    something is better in both."""
    from matplotlib import pyplot as plt

    kind, colour = plan.kinds[0], colours(plan)
    best, speeds = {row.setup: row for row in best_rows(every, kind)}, {
        heading: figures for heading, figures in panels(plan, every)
        if heading.endswith("tokens/s")}
    figure, axes = plt.subplots(1, len(speeds), figsize=(1 + 5 * len(speeds), 4.5), sharey=True,
                                squeeze=False, layout="constrained")
    for axis, (heading, figures) in zip(axes[0], speeds.items(), strict=True):
        middle = fmean([figures[name].middle for name in best if name in figures])
        for name, row in best.items():
            if name in figures:
                loss, speed = row.loss[kind], figures[name].middle
                axis.errorbar(speed, loss.middle, fmt="o", color=colour[name], capsize=3,
                              yerr=[[loss.middle - loss.low], [loss.high - loss.middle]])
                left = speed > middle  # where there is room for the name
                axis.annotate(name, (speed, loss.middle), (-6 if left else 6, 4), fontsize=8,
                              textcoords="offset points", ha="right" if left else "left")
        axis.set_xlabel(heading.replace("\n", " ") + " →")
        axis.margins(x=0.2)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"held-out loss, {TITLES[kind]}, nats ←")
    figure.suptitle("Quality against speed: down and to the right is better", fontsize=10)
    return save(figure, file)


def curves(plan: Plan, runs: Path, kind: Kind, every: list[Row], file: Path) -> Path:
    """Training and held-out loss, accuracy and throughput over tokens, or over seconds where time
    is equal, of every seed."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    colour, labelled = colours(plan), set()
    for axis, (key, label) in zip(axes.flat, CURVES, strict=True):
        for row in every:
            for seed in range(plan.seeds):
                arm = plan.arm(row.setup, kind, row.lr, seed)
                rate = 1.0 if kind == "tokens" else plan.found.get(arm.name, {}).get("rate")
                if rate is None:
                    continue
                xs, ys = points(metrics.read(runs / arm.name / "metrics.jsonl"), key, rate)
                if xs:
                    name = None if (key, row.setup) in labelled else f"{row.setup}, {row.lr:g}"
                    labelled.add((key, row.setup))
                    axis.plot(xs, ys, color=colour[row.setup], alpha=0.8, lw=1.2, label=name)
        axis.set_ylabel(label)
        axis.set_xlabel("tokens" if kind == "tokens" else "seconds of training")
        axis.xaxis.set_major_locator(plt.MaxNLocator(6, integer=True))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.grid(alpha=0.3)
    if labelled:
        axes.flat[0].legend(fontsize=8, loc="upper right")
    figure.suptitle(f"{plan.experiment.question}  {TITLES[kind]}", fontsize=10)
    return save(figure, file)


def points(found: list[dict[str, Any]], key: str, rate: float) -> tuple[list[float], list[Any]]:
    """(tokens over `rate`, values)."""
    steps, values = series(found, key)
    trained = [row for row in found if row.get("tokens")]
    if not trained or not steps:
        return [], []
    seen = np.interp(steps, [0, *(row["step"] for row in trained)],
                     [0, *(row["tokens"] for row in trained)])
    return list(seen / rate), values


def save(figure: Any, file: Path) -> Path:
    from matplotlib import pyplot as plt

    picture = io.BytesIO()
    figure.savefig(picture, dpi=100)
    plt.close(figure)
    write_bytes(file, picture.getvalue())
    return file
