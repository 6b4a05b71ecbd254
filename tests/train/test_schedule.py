"""Learning rates and window lengths over a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specs import UserError
from train.schedule import SCHEDULES, learning_rate
from train.settings import Settings


def rates(schedule: str, steps: int = 100, warmup: int = 10) -> list[float]:
    settings = Settings(schedule=schedule, steps=steps, warmup=warmup, lr=1.0, min_lr=0.1)
    return [learning_rate(settings, step) for step in range(steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_and_reaches_the_peak(schedule: str) -> None:
    assert rates(schedule)[:10] == pytest.approx([0.1 * k for k in range(1, 11)])


@pytest.mark.parametrize("schedule, last, middle", [
    ("cosine", 0.1, 0.55), ("wsd", 0.1, 1.0), ("constant", 1.0, 1.0)])
def test_shapes(schedule: str, last: float, middle: float) -> None:
    found = rates(schedule, steps=111)
    assert found[10] == pytest.approx(1.0) and found[60] == pytest.approx(middle)
    assert found[-1] == pytest.approx(last)
    assert sorted(found[10:], reverse=True) == found[10:]


def test_a_run_by_the_clock_follows_the_clock() -> None:
    settings = Settings(minutes=2, warmup=0, lr=1.0, min_lr=0.0)
    assert learning_rate(settings, 7, elapsed=0) == pytest.approx(1)
    assert learning_rate(settings, 7, elapsed=60) == pytest.approx(0.5)
    assert learning_rate(settings, 7, elapsed=500) == pytest.approx(0)


def test_a_slow_run_by_the_clock_warms_up_in_a_tenth_of_it() -> None:
    settings = Settings(minutes=2, lr=1.0, min_lr=0.0, schedule="wsd")
    assert learning_rate(settings, 24, elapsed=1) == pytest.approx(0.5)  # of 50 updates
    assert learning_rate(settings, 4, elapsed=6) == pytest.approx(0.5)
    assert learning_rate(settings, 4, elapsed=12) == learning_rate(settings, 60, elapsed=2) == 1
    told = Settings(minutes=2, lr=1.0, warmup=50)
    assert learning_rate(told, 4, elapsed=60) == pytest.approx(0.1)


def test_curriculum_doubles_over_the_first_half() -> None:
    settings = Settings(steps=80, seq_curriculum=(64, 256))
    lengths = [settings.block_size(step, 512) for step in range(80)]
    assert lengths == [64] * 20 + [128] * 20 + [256] * 40
    assert Settings(steps=80).block_size(0, 512) == 512


@pytest.mark.parametrize("curriculum", [None, (4, 16), (3, 17), (8, 8)], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7, 80, None])
def test_tokens_are_those_of_every_window(steps: int | None,
                                          curriculum: tuple[int, int] | None) -> None:
    settings = Settings(steps=steps, seq_curriculum=curriculum, batch_size=2)
    lengths = [settings.block_size(step, 17) for step in range(100)]
    for step in range(101):
        assert settings.tokens_until(step, 17) == 2 * sum(lengths[:step])


def test_many_tokens_are_quickly_counted() -> None:
    settings = Settings(seq_curriculum=(64, 256), batch_size=1).for_tokens(10**12, 256)
    assert settings.steps is not None
    assert settings.tokens_until(settings.steps, 256) >= 10**12
    fewer = replace(settings, steps=settings.steps - 1)
    assert fewer.tokens_until(settings.steps - 1, 256) < 10**12


def test_a_curriculum_that_shrinks_is_refused() -> None:
    with pytest.raises(UserError, match="growing"):
        Settings(seq_curriculum=(256, 64))
