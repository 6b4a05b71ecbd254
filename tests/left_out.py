"""A pytest plugin for `make test BACKENDS=...`: tests of a backend that is left out are skipped.

They are known by a parameter that is its name, by the mark `needs("torch")`, or by stumbling over
it. Without this plugin, or with both backends asked for, a missing one fails its tests.
"""

import os
from collections.abc import Iterator

import pytest

from specs.backend import BACKENDS
from specs.errors import UserError

LEFT_OUT = tuple(set(BACKENDS) - set(os.environ["DIPTYCH_BACKENDS"].split()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    needed = [*params.values()]
    for mark in item.iter_markers("needs"):
        needed += mark.args
    for name in LEFT_OUT:
        if name in needed:
            pytest.skip(f"{name} is left out")
    return (yield from _skip_what_needs_it())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    return (yield from _skip_what_needs_it())


def _skip_what_needs_it() -> Iterator[None]:
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in LEFT_OUT:
            pytest.skip(f"needs {error.name}")
        raise
    except UserError as error:
        if str(error).startswith(tuple(f"{name} is not installed" for name in LEFT_OUT)):
            pytest.skip(str(error))
        raise
