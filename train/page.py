"""The comparison of runs as one HTML file: no script, no network, light and dark."""

from __future__ import annotations

from html import escape

from train.curves import AXES, COLUMNS, History, cells, measure, remarks
from train.overlay import svg

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1b1e23; --line: #c9ced6; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171c; --ink: #e6e8eb; --line: #444b57; } }
body { margin: 0 auto; max-width: 90rem; padding: 1.5rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr));
  gap: 1.5rem; }
figure { margin: 0; }
svg { width: 100%; height: auto; color: var(--ink); }
"""


def html(histories: list[History], smooth: float) -> str:
    """The whole page."""
    title = escape(" · ".join(history.name for history in histories))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in COLUMNS)
    rows = ""
    for history in histories:
        name, *others = map(escape, cells(history, histories, smooth))
        rows += (f'<tr><th scope="row">{name}</th>'
                 + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>\n")
    notes = "".join(f"<p>{escape(remark)}</p>\n" for remark in remarks(histories))
    pictures = "".join(
        f"<figure><h2>Against {axis}</h2>\n{svg(histories, axis, smooth)}</figure>\n"
        for axis in AXES)
    unit = measure(histories)[1]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Runs compared</h1>
<div class="wide" tabindex="0" role="region" aria-label="Table of the runs">
<table>
<caption>Losses in {unit}; MFU is the share of the machine's own matrix-product rate.</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}</tbody>
</table>
</div>
{notes}<p>Training losses keep {smooth:g} of their past at each point (faint: as measured);
validation losses, with markers, are as measured.</p>
<div class="pictures">
{pictures}</div>
</main>
</body>
</html>
"""
