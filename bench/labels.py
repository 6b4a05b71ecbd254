"""Names of lines, written where these end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

APART = 0.05  # of the height of a panel: between two names at least


def name_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each (x, y, name, colour) right of the panel, beside y, but apart from the others.

    Call it when nothing changes the axes any more.
    """
    axes.figure.canvas.draw()
    to_panel = axes.transData + axes.transAxes.inverted()
    places = sorted((to_panel.transform((x, y))[1], name, colour) for x, y, name, colour in ends)
    height, heights = -1.0, []
    for place, _, _ in places:
        height = max(place, height + APART)
        heights.append(height)
    most = 1.0
    for number in reversed(range(len(heights))):  # back into the panel from above
        heights[number] = min(heights[number], most)
        most = heights[number] - APART
    for height, (_, name, colour) in zip(heights, places, strict=True):
        axes.annotate(name, (1.01, height), xycoords="axes fraction", color=colour, fontsize=8,
                      va="center", annotation_clip=False)
