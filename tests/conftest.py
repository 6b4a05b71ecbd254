"""Both panels must be here: a missing backend fails the tests, it does not skip them."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests themselves run side by side

import pytest

from specs import spec_type
from specs.backend import BACKENDS, Backend, load_backend
from specs.base import Spec

# What a shell starts with & is deaf to Ctrl-C, and so would be all that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return load_backend(request.param, "cpu")


@pytest.fixture
def compiling() -> Iterator[None]:
    """Compile for one number at a time: half the time to compile, the same graphs."""
    if importlib.util.find_spec("torch"):
        config = importlib.import_module("torch._inductor.config")
        with config.patch("cpp.simdlen", 0):
            yield
    else:
        yield


@pytest.fixture
def tiny() -> Spec:
    return spec_type("bdh").preset("tiny", dropout=0.0)
