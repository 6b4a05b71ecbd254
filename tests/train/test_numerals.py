"""Numbers as a person reads them."""

import pytest

from train.numerals import duration, short


@pytest.mark.parametrize(("number", "text"), [
    (0, "0"), (999, "999"), (1234, "1.23k"), (462_336, "462k"), (2.5e9, "2.5B"), (3e12, "3T"),
    (1.5e15, "1.5P"), (999.7, "1k"), (999_600, "1M"), (6.478e18, "6.48e+18"),
])
def test_short(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05"), (360_000, "100:00:00"),
])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
