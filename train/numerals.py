"""Numbers as a person reads them."""

from __future__ import annotations


def short(number: float) -> str:
    """1,234,567 as 1.23M: three digits and a unit."""
    number = float(f"{number:.3g}")  # so that what is rounded up to 1,000 has the next unit
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1e18 else f"{number:.2e}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any: 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
