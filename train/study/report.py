"""The table and the page of an experiment."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from specs import Spec
from train.study import claims
from train.study.figures import Figure, listed, probed, rows, spread
from train.study.plan import Kind, Plan

TITLES: dict[Kind, str] = {"tokens": "equal tokens", "time": "equal time", "clock": "by the clock"}


def table(plan: Plan) -> list[list[str]]:
    """Headings, then a row for each setup and learning rate; columns that say nothing left out."""
    every = rows(plan)
    found = [["", *(row.setup for row in every)],
             ["parameters", *(size(plan.specs[row.setup]) for row in every)],
             ["learning rate", *(f"{row.lr:g}" for row in every)]]
    for kind in plan.kinds:
        title = TITLES[kind]
        found += [[f"loss, {title}", *(spread(row.loss.get(kind)) for row in every)],
                  [f"accuracy, {title}", *(spread(row.accuracy.get(kind), ".1%") for row in every)],
                  [f"steps, {title}", *(spread(row.updates.get(kind), ",.0f") for row in every)]]
        for length in dict.fromkeys(length for row in every for length in row.read.get(kind, {})):
            found.append([f"loss in windows of {length}, {title}",
                          *(spread(row.read.get(kind, {}).get(length)) for row in every)])
    found.append(["training, tokens/s", *(spread(row.rate, ",.0f") for row in every)])
    probes = [probed(plan, row.setup) for row in every]
    found.append(["memory, MB", *(number(probe.get("memory"), 1e6) for probe in probes)])
    for context in map(str, plan.experiment.contexts):
        found.append([f"decoding behind {context}, tokens/s",
                      *(number(probe.get("decoding", {}).get(context)) for probe in probes)])
    found.append(["failed", *("; ".join(row.failed) for row in every)])
    said = [column for column in found if any(column[1:])]
    return [list(cells) for cells in zip(*said, strict=True)]


def shares(plan: Plan) -> str:
    """Which setups have less or more than the others."""
    found = listed([f"{name} {setup.share:g}" for name, setup in plan.setups.items()
                    if setup.share != 1])
    return "" if found == "none" else f" (times {found})"


def size(spec: Spec) -> str:
    active = spec.active_param_count()
    return f"{spec.param_count():,}" + (
        f", {active:,} active" if active < spec.param_count() else "")


def number(value: float | None, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:,.0f}"


def on_terminal(plan: Plan, answer: str, console: Console) -> None:
    """The table, then the answer."""
    made = [(plan.experiment.question, table(plan))] if rows(plan) else []
    if plan.experiment.claims:
        made.append(("What is claimed, and what was measured (×, loss: beside the same without)",
                     claims.table(plan)))
    for title, (headings, *body) in made:
        shown = Table(title=title, title_justify="left")
        for heading in headings:
            words = heading in ("", "item", "claimed", "besides")
            shown.add_column(heading, overflow="fold", justify="left" if words else "right")
        for row in body:
            shown.add_row(*row)
        console.print(shown)
    console.print("\n" + answer.replace("**", ""), soft_wrap=False)


def page(plan: Plan, document: dict[str, Any], answer: str, pictures: list[str]) -> str:
    """All of it as markdown."""
    about = document["about"]
    tables = [*([table(plan)] if rows(plan) else []),
              *([claims.table(plan)] if plan.experiment.claims else [])]
    lines = [f"# {plan.experiment.question}", "",
             f"Made by `{document['command']}`: {plan.tokens:,} tokens a training at equal "
             f"tokens{shares(plan)}, {plan.seeds} seeds; losses are held-out nats a token at the "
             "end of a training, means with the lowest and highest; equal time is that of the "
             "middle one's training at equal tokens. "
             f"{about['corpus']}. {document['chip']}; "
             + ", ".join(f"{key} {value}" for key, value in document["versions"].items()) + ".", "",
             *(line for headings, *body in tables for line in (
                 *(f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *body]),
                 "")),
             answer, "", *(f"![{picture}]({picture})" for picture in pictures), ""]
    return "\n".join(lines)


def machine_rows(plan: Plan) -> list[dict[str, Any]]:
    """The table for programs: numbers with their spread."""
    def plain(found: Figure | None) -> dict[str, float] | None:
        return asdict(found) if found else None

    return [{"setup": row.setup, "lr": row.lr,
             "parameters": plan.specs[row.setup].param_count(),
             "active_parameters": plan.specs[row.setup].active_param_count(),
             **{f"loss_{kind}": plain(found) for kind, found in row.loss.items()},
             **{f"accuracy_{kind}": plain(found) for kind, found in row.accuracy.items()},
             **{f"updates_{kind}": plain(found) for kind, found in row.updates.items()},
             **{f"loss_{kind}_{length}": plain(found) for kind, lengths in row.read.items()
                for length, found in lengths.items()},
             "tokens_per_s": plain(row.rate),
             **{name: value for name, value in probed(plan, row.setup).items()
                if name in ("memory", "decoding")},
             "failed": list(row.failed)} for row in rows(plan)]
