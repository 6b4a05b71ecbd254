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
    first = plan.kinds[0]
    found += [[f"training loss, {TITLES[first]}", *(spread(row.training.get(first))
                                                    for row in every)],
              [f"seconds, {TITLES[first]}", *(spread(row.seconds.get(first), ",.0f")
                                              for row in every)],
              ["training, tokens/s", *(f"{plan.speed(row.setup):,.0f}" if row.rate else ""
                                       for row in every)],
              ["tokens/s in its trainings", *(spread(row.rate, ",.0f") for row in every)]]
    probes = [probed(plan, row.setup) for row in every]
    found.append(["memory, MB", *(number(probe.get("memory"), 1e6) for probe in probes)])
    for context in map(str, plan.experiment.contexts):
        found.append([f"decoding behind {context}, tokens/s",
                      *(number(probe.get("decoding", {}).get(context)) for probe in probes)])
    found.append(["failed", *("; ".join(row.failed) for row in every)])
    said = [column for column in found if any(column[1:])]
    return [list(cells) for cells in zip(*said, strict=True)]


def tables(plan: Plan) -> dict[str, list[list[str]]]:
    """Those of which something is known, by title."""
    made = {plan.experiment.question: table(plan) if rows(plan) else [],
            "What is claimed, and what was measured (×, loss: beside the same without)":
            claims.table(plan)}
    return {title: lines for title, lines in made.items() if lines}


def trained(plan: Plan) -> str:
    """How long, and how often."""
    seeds = f"{plan.seeds} seed{'s' * (plan.seeds > 1)}"
    if plan.minutes is not None:
        return f"{plan.minutes:g} minutes a training{shares(plan)}, {seeds}"
    groups = any(setup.group for setup in plan.setups.values())
    equal_time = (f"; equal time is that of the {'faster' if groups else 'middle'} one's training "
                  f"at equal tokens{', in each pair' * groups}" if plan.experiment.timed else "")
    return f"{plan.tokens:,} tokens a training at equal tokens{shares(plan)}, {seeds}{equal_time}"


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
    for title, (headings, *body) in tables(plan).items():
        shown = Table(title=title, title_justify="left")
        for heading in headings:
            words = heading in ("", "item", "claimed", "besides")
            shown.add_column(heading, overflow="fold", no_wrap=not heading,
                             justify="left" if words else "right")
        for row in body:
            shown.add_row(*row)
        console.print(shown)
    console.print("\n" + answer.replace("**", ""), soft_wrap=False)


def page(plan: Plan, document: dict[str, Any], answer: str, pictures: list[str]) -> str:
    """All of it as markdown."""
    about = document["about"]
    lines = [f"# {plan.experiment.question}", "",
             f"Made by `{document['command']}`: {trained(plan)}. Losses are held-out nats a token "
             "at the end of a training, means with the lowest and highest. "
             f"{about['corpus']}. {document['chip']}; "
             + ", ".join(f"{key} {value}" for key, value in document["versions"].items()) + ".", "",
             *(line for headings, *body in tables(plan).values() for line in (
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
             **{f"{name}_{kind}": plain(found) for name in (
                 "loss", "lowest", "training", "accuracy", "updates", "seconds")
                for kind, found in getattr(row, name).items()},
             **{f"loss_{kind}_{length}": plain(found) for kind, lengths in row.read.items()
                for length, found in lengths.items()},
             "tokens_per_s": plain(row.rate), "windows_per_s": row.rate and (
                 row.rate.middle / plan.specs[row.setup].block_size),
             **{name: value for name, value in probed(plan, row.setup).items()
                if name in ("memory", "decoding")},
             "failed": list(row.failed)} for row in rows(plan)]
