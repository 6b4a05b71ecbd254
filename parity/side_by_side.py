"""Models climbed side by side, a process for each core: a small one keeps no more than one busy."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from parity.ladder import Result, climb
from parity.subject import Subject, is_small, load_panels
from specs import Spec, UserError
from specs.backend import Arrays

MOST = 4  # each process holds both frameworks
SHARING = "trajectory", "resume"  # rungs of the same training runs
_subjects: list[Subject] = []  # in a process that climbs


@contextmanager
def climbing(subjects: Sequence[Subject], rungs: Sequence[str]) -> Iterator[
        Iterator[Iterator[Result]]]:
    """The results of each subject in order, while those of later ones are on their way. A large
    model has all cores to itself.

    Raises `UserError` if a process that climbs is ended from without.
    """
    processes = min(MOST, os.cpu_count() or 1, len(subjects))
    if processes == 1 or not all(is_small(subject.spec) for subject in subjects):
        yield (climb(subject, rungs) for subject in subjects)
        return
    legs = [list(leg) for _, leg in itertools.groupby(
        rungs, lambda rung: SHARING if rung in SHARING else rung)]
    models = [(subject.spec, subject.weights, subject.seed) for subject in subjects]
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), arrive, (models,))
    try:
        with interrupts_left_to_this_process():
            found = [[pool.submit(climb_leg, model, leg) for leg in legs]
                     for model in range(len(models))]
        yield ((result for leg in climbed for result in leg.result()) for climbed in found)
    except BrokenProcessPool as error:
        raise UserError("a process that climbed was ended from without, perhaps for want of "
                        "memory: check fewer --arch at a time") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


@contextmanager
def interrupts_left_to_this_process() -> Iterator[None]:
    """Processes that are started meanwhile are deaf to Ctrl-C, for a terminal tells them too."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def arrive(models: Sequence[tuple[Spec, Arrays, int]]) -> None:
    threading.Thread(target=leave_with_the_parent, daemon=True).start()
    panels = load_panels(small=True)
    _subjects.extend(Subject(spec, weights, panels, panels["torch"], seed)
                     for spec, weights, seed in models)


def leave_with_the_parent() -> None:
    """A pool's processes outlive one that is killed, and wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def climb_leg(model: int, rungs: Sequence[str]) -> list[Result]:
    return list(climb(_subjects[model], rungs))
