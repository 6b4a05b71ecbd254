"""Models climbed in several processes: the same results in the same order, and none left over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from parity.cases import lively_weights
from parity.ladder import Result, climb
from parity.side_by_side import climbing
from parity.subject import SMALL, Subject
from specs import Spec, UserError, spec_type
from specs.backend import Backend

RUNGS = ["parameters", "single-step", "logits"]


@pytest.fixture
def subjects(panels: dict[str, Backend], monkeypatch: pytest.MonkeyPatch) -> list[Subject]:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    specs = [spec_type("bdh").preset("tiny", n_layer=1), spec_type("gpt").preset("tiny")]
    return [Subject(spec, lively_weights(spec, 1), panels, panels["torch"], seed=1)
            for spec in specs]


def budgets(results: list[Result]) -> dict[tuple[str, ...], float]:
    return {(result.rung, measure.case.name, measure.name): measure.budget
            for result in results for measure in result.measures}


def test_the_same_results_in_the_same_order(subjects: list[Subject]) -> None:
    with climbing(subjects, RUNGS) as climbs:
        found = [list(results) for results in climbs]
        assert multiprocessing.active_children()
    for results, subject in zip(found, subjects, strict=True):
        assert [result.rung for result in results] == RUNGS
        assert budgets(results) == pytest.approx(budgets(list(climb(subject, RUNGS))), rel=1e-3)
    assert all(result.ok for results in found for result in results)
    gone(multiprocessing.active_children)


def test_an_interrupt_leaves_no_process(subjects: list[Subject]) -> None:
    with pytest.raises(KeyboardInterrupt), climbing(subjects, ["trajectory", "resume"]):
        raise KeyboardInterrupt
    gone(multiprocessing.active_children)


def test_a_process_ended_from_without_is_said(subjects: list[Subject]) -> None:
    with (pytest.raises(UserError, match="was ended from without"),
          climbing(subjects, ["trajectory", "resume"]) as climbs):
        multiprocessing.active_children()[0].kill()
        for results in climbs:
            list(results)


def test_a_killed_parent_leaves_no_process() -> None:
    code = ("import multiprocessing, os; from tests.parity.test_side_by_side import *\n"
            "if __name__ == '__main__':\n"
            "    subjects = [Subject(s, lively_weights(s, 1), {}, None) for s in "
            "2 * [spec_type('gpt').preset('tiny')]]\n"
            "    os.cpu_count = lambda: 2\n"
            "    with climbing(subjects, ['logits', 'trajectory']) as climbs:\n"
            "        next(next(climbs))\n"
            "        print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
            "        os.kill(os.getpid(), 9)\n")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    left = [int(pid) for pid in run.stdout.split()]
    assert len(left) == 2
    gone(lambda: [pid for pid in left if alive(pid)])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(these: Callable[[], list[object]]) -> None:
    until = time.monotonic() + 30
    while these() and time.monotonic() < until:
        time.sleep(0.1)
    assert not these()


@pytest.mark.parametrize("why", ["one model", "one core", "a large model"])
def test_in_this_process_alone(why: str, subjects: list[Subject],
                               monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "one model":
        del subjects[1]
    elif why == "one core":
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
    else:
        monkeypatch.setattr(Spec, "param_count", lambda spec: SMALL)
    with climbing(subjects, ["parameters"]) as climbs:
        assert [result.rung for results in climbs for result in results] == [
            "parameters"] * len(subjects)
        assert not multiprocessing.active_children()
