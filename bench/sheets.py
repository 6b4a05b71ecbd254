"""The tables, the page and the picture of bench/optimizations.py."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.answers import Figure, Shown, answers, length_losses, show, stack, verdict
from bench.claims import LONG, Option, Plan
from train.files import write_bytes, write_text

Sheet = tuple[str, list[str], list[list[str]]]  # title, headings, rows


def sheets(document: dict[str, Any], plan: Plan, backend: str) -> list[Sheet]:
    """All tables of one backend."""
    shown = {name: show(document["trials"], plan, backend, name) for name in plan.setups()}
    on_cpu = document["versions"][backend]["device"] == "cpu"
    return [options_sheet(shown, plan, backend, on_cpu), stack_sheet(shown, plan, backend),
            length_sheet(document, plan, backend)]


def options_sheet(shown: dict[str, Shown], plan: Plan, backend: str, on_cpu: bool) -> Sheet:
    rows = []
    for option in (*plan.options, *LONG):
        found = shown[option.key]
        remark = dict(option.unseen).get(backend, "") if on_cpu else ""
        if option.base not in ("baseline", "long plain"):
            remark = "; ".join(filter(None, [f"against {option.base} form, dense", remark]))
        rows.append([option.title, option.claim or "–", times(found.rate), times(found.memory),
                     nats(found.steps), nats(found.time),
                     f"failed: {found.error}" if found.error else verdict(option, found), remark])
    return (f"{backend}: each alone", ["optimisation", "the claim", "tokens/s ×", "peak memory ×",
                                       "loss, equal steps", "loss, equal time", "holds",
                                       "what this device shows"], rows)


def stack_sheet(shown: dict[str, Shown], plan: Plan, backend: str) -> Sheet:
    rate, memory = (stack(shown, plan, kind) for kind in ("rate", "memory"))
    rows = [[f"+ {option.title}", f"{level:.2f}", f"{product:.2f}", f"{used:.2f}", f"{single:.2f}"]
            for (option, level, product), (_, used, single) in zip(rate, memory, strict=True)]
    return f"{backend}: one on top of the other", ["the baseline", "tokens/s ×", "singles' product",
                                                   "peak memory ×", "singles' product"], rows


def length_sheet(document: dict[str, Any], plan: Plan, backend: str) -> Sheet:
    table = length_losses(document["trials"], plan, backend)
    rows = [[str(length), *(spread(losses[other]) for other in plan.lengths)]
            for length, losses in table.items()]
    return (f"{backend}: held-out loss after equal time, by the length of windows",
            ["trained on", *(f"read {other}" for other in plan.lengths)], rows)


def times(found: Figure | None) -> str:
    return "" if found is None else f"{found.middle:.2f} ({found.low:.2f}–{found.high:.2f})"


def nats(found: Figure | None) -> str:
    return "" if found is None else f"{found.middle:+.3f} ({found.low:+.3f} … {found.high:+.3f})"


def spread(found: Figure) -> str:
    return f"{found.middle:.3f} ({found.low:.3f}–{found.high:.3f})"


def on_terminal(document: dict[str, Any], plan: Plan, console: Console) -> None:
    if not console.is_terminal:
        console.width = 160
    for backend in document["versions"]:
        for title, headings, rows in sheets(document, plan, backend):
            table = Table(title=title, title_justify="left")
            for number, heading in enumerate(headings):
                table.add_column(heading, justify="right" if "×" in heading else "left",
                                 overflow="fold", min_width=10 if number < 2 else None)
            for row in rows:
                table.add_row(*row)
            console.print(table)
        for text in paragraphs(document, plan, backend):
            console.print(text.replace("**", ""), "\n")


def paragraphs(document: dict[str, Any], plan: Plan, backend: str) -> list[str]:
    return answers(document["trials"], plan, backend, document["parameters"])


def page(document: dict[str, Any], plan: Plan, path: Path, picture: str) -> None:
    """Write all of it as markdown."""
    about = document["about"]
    lines = [
        "# Optimisations: the claim beside the measurement", "",
        "Written by `python bench/optimizations.py --out docs`, which on another device measures "
        "what this one cannot show.", "",
        f"The baseline is GPT-2's form, {plan.layers} layers of {plan.width}, "
        f"{document['parameters']:,} parameters, {plan.batch} × {plan.block} tokens an update, in "
        f"float32, all scores of attention at once; `long` is one window of {plan.long:,} tokens. "
        "Ratios are medians over rounds in turn, a process each, with the lowest and highest; "
        "memory is what training adds to the process at its peak. Losses are held-out nats against "
        "the baseline's at the same seed, means with the lowest and highest: after "
        f"{about['steps']} updates, and after as many as the baseline's time allows. "
        f"{about['data']}; "
        f"{about['chip']}.", ""]
    for backend, versions in document["versions"].items():
        lines += [f"## {backend}", "", ", ".join(f"{k} {v}" for k, v in versions.items()), ""]
        for title, headings, rows in sheets(document, plan, backend):
            if rows:
                lines += [f"**{title.partition(': ')[2].capitalize()}**", ""]
                table = [headings, ["---"] * len(headings), *rows]
                lines += [f"| {' | '.join(row)} |" for row in table] + [""]
        for text in paragraphs(document, plan, backend):
            lines += [text, ""]
    write_text(path, "\n".join([*lines, f"![Ratios and differences of loss]({picture})", ""]))


def draw(document: dict[str, Any], plan: Plan, path: Path) -> None:
    """Bars for each option and backend, the claimed ranges behind them; the stack on the right."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    options: list[Option] = [*plan.options, *LONG]
    places = list(range(len(options)))
    figure, every = plt.subplots(3, 2, figsize=(13, 11), layout="constrained",
                                 gridspec_kw={"width_ratios": (3, 2)})
    kinds = (("rate", "tokens/s ×"), ("memory", "peak memory ×"), ("time", "nats, equal time"))
    for (left, right), (kind, label) in zip(every, kinds, strict=True):
        none = 0 if kind == "time" else 1  # what changes nothing
        for place, option in enumerate(options):
            claimed = getattr(option, kind, None)
            if claimed:
                left.fill_between([place - 0.45, place + 0.45], *claimed, color="0.8", lw=3)
        for number, backend in enumerate(document["versions"]):
            shown = {name: show(document["trials"], plan, backend, name) for name in plan.setups()}
            found = [(place, getattr(shown[option.key], kind))
                     for place, option in enumerate(options)]
            bars = [(place, each) for place, each in found if each]
            left.bar([place + 0.4 * number - 0.2 for place, _ in bars],
                     [each.middle - none for _, each in bars], 0.38, none, label=backend,
                     color=f"C{number}")
            if kind != "time":
                rows = stack(shown, plan, kind)
                right.plot([level for _, level, _ in rows], f"C{number}o-", label=backend)
                right.plot([product for _, _, product in rows], f"C{number}:",
                           label=f"{backend}, product of the singles")
        left.set_ylabel(label)
        left.set_xlim(-0.6, len(options) - 0.4)
        left.axhline(none, color="k", lw=0.8)
        left.set_xticks(places, [option.key for option in options], rotation=45, ha="right")
        if kind == "time":
            lengths(document, plan, right)
        else:
            for axes in (left, right):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("{x:g}")
                axes.tick_params(which="both", labelsize=8)
            right.set_ylabel(f"{label}, stacked")
            right.set_xticks(range(len(plan.stacked)), [f"+ {o.key}" for o in plan.stacked],
                             rotation=45, ha="right")
        left.legend(fontsize=8)
        right.legend(fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    write_bytes(path, picture.getvalue())


def lengths(document: dict[str, Any], plan: Plan, axes: Any) -> None:
    """Held-out loss over the length trained on, for the shortest and the longest windows read."""
    for number, backend in enumerate(document["versions"]):
        table = length_losses(document["trials"], plan, backend)
        for other, style in ((min(plan.lengths), "o-"), (max(plan.lengths), "s--")):
            axes.plot([str(length) for length in table],
                      [losses[other].middle for losses in table.values()], f"C{number}{style}",
                      label=f"{backend}, read {other}")
    axes.set_xlabel("window trained on")
    axes.set_ylabel("held-out nats, equal time")
