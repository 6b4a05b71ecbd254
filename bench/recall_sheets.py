"""The table, the order and the picture of bench/recall.py."""

from __future__ import annotations

import io
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.pages import Sheet
from train.files import write_bytes

# In the order that the literature reports (Zoology, arXiv 2312.04927; Based, arXiv 2402.18668)
FAMILIES = {"attention": ("gpt", "mla", "moe"),
            "recurrent states": ("bdh", "mamba2", "retnet", "rwkv7"),
            "long convolutions": ("hyena", "toeplitz")}
NEAR = 0.02  # accuracies that differ by less are the same


def mean_accuracy(trial: dict[str, Any]) -> float:
    return fmean(trial["accuracy"].values())


def accuracies(document: dict[str, Any], arch: str) -> dict[int, list[float]]:
    """Number of pairs → that of each seed, at the architecture's best rate."""
    rate = document["models"][arch]["rate"]
    trials = [trial for seed in range(document["about"]["seeds"])
              if (trial := document["measured"].get(f"{arch} {rate:g} {seed}"))]
    return {pairs: [trial["accuracy"][str(pairs)] for trial in trials]
            for pairs in document["about"]["pairs"]}


def ranked(document: dict[str, Any]) -> list[str]:
    """The architectures that were trained, the best first."""
    trained = [arch for arch, model in document["models"].items() if "rate" in model]
    return sorted(trained, key=lambda arch: -overall(document, arch))


def overall(document: dict[str, Any], arch: str) -> float:
    return fmean(value for each in accuracies(document, arch).values() for value in each)


def sheet(document: dict[str, Any]) -> Sheet:
    rows = []
    for arch in ranked(document):
        model, cells = document["models"][arch], []
        for each in accuracies(document, arch).values():
            cells.append(f"{fmean(each):.0%} ({min(each):.0%}–{max(each):.0%})")
        rows.append([arch, f"{model['parameters']:,}", f"{model['rate']:g}", *cells])
    return ("Answers that are right, by the number of pairs",
            ["", "parameters", "learning rate", *map(str, document["about"]["pairs"])], rows)


def found_order(document: dict[str, Any]) -> str:
    """Whether families follow each other as the literature has them, by their best members."""
    best = {}
    for family, members in FAMILIES.items():
        trained = [arch for arch in ranked(document) if arch in members]
        if trained:
            best[family] = (trained[0], overall(document, trained[0]))
    shares = [share for _, share in best.values()]
    said = ", ".join(f"{family} {share:.0%} ({arch})" for family, (arch, share) in best.items())
    by_chance = fmean(1 / pairs for pairs in document["about"]["pairs"])
    ending = f"here: {said}. Who says any of the values told is right in {by_chance:.0%}."
    if len(shares) < 2:
        return f"Of the families one was trained {ending}"
    if max(shares) - min(shares) < NEAR:
        return f"The best of the families do not part {ending}"
    kept = all(one >= other - NEAR for one, other in zip(shares, shares[1:], strict=False))
    return ("The order that the literature reports "
            f"{'appears' if kept else 'does not appear'} {ending}")


def draw(document: dict[str, Any], path: Path) -> None:
    """Accuracy over the number of pairs, a line for each architecture with its name, a band from
    the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    from bench.labels import name_ends

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    names, ends = sorted(document["models"]), []
    for arch in ranked(document):
        colour = f"C{names.index(arch)}"
        found = accuracies(document, arch)
        middle = [100 * fmean(each) for each in found.values()]
        axes.plot(list(found), middle, "o-", color=colour)
        axes.fill_between(list(found), [100 * min(each) for each in found.values()],
                          [100 * max(each) for each in found.values()], color=colour, alpha=0.15)
        ends.append((max(found), middle[-1], f"{arch} {middle[-1]:.0f} %", colour))
    about = document["about"]
    axes.set_xscale("log", base=2)
    axes.set_xticks(about["pairs"], [str(pairs) for pairs in about["pairs"]])
    axes.set_xlabel("pairs to remember")
    axes.set_ylabel("answers that are right, %")
    axes.set_ylim(-2, 102)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Associative recall at {about['parameters']:,} parameters, "
                   f"{about['steps']} steps, {about['seeds']} seeds")
    name_ends(axes, ends)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    write_bytes(path, picture.getvalue())
