"""The cache of keys and values shows each query what the definition says, whatever the pieces."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PANELS = ["mlx", "torch"]


def shown(panel: str, pieces: list[int], window: int | None, sinks: int) -> list[set[int]]:
    """The positions that each query sees; two rows, whose keys and values are their positions."""
    module = importlib.import_module(f"{panel}_models.cache")
    framework = importlib.import_module({"mlx": "mlx.core", "torch": "torch"}[panel])
    array = framework.array if panel == "mlx" else framework.tensor
    cache, seen = module.KeyValueCache(window, sinks, block=8), []
    for T in pieces:
        start = cache.offset
        mask = cache.make_mask(array(np.zeros((2, T), np.int32)))
        place = array(np.tile(np.arange(start, start + T, dtype=np.float32)[:, None], (2, 1, 1, 1)))
        k, v = map(np.asarray, cache.update_and_fetch(place, place))
        np.testing.assert_array_equal(k, v)
        np.testing.assert_array_equal(k[0], k[1])
        S = k.shape[2]
        if mask is None or isinstance(mask, str):
            assert mask is None or (mask == "causal" and T == S)
            mask = np.ones((T, S), bool) if mask is None else np.tri(T, S, dtype=bool)
        seen += [set(k[0, 0, row, 0].astype(int)) for row in np.asarray(mask)]
        assert cache.offset == start + T
    return seen


@pytest.mark.parametrize("panel", PANELS)
@given(st.lists(st.integers(1, 13), min_size=1, max_size=9), st.none() | st.integers(2, 9),
       st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_each_query_sees_what_it_should(panel: str, pieces: list[int], window: int | None,
                                        sinks: int) -> None:
    sinks = sinks if window else 0
    wanted = [{s for s in range(t + 1) if window is None or s > t - window or s < sinks}
              for t in range(sum(pieces))]
    assert shown(panel, pieces, window, sinks) == wanted


@pytest.mark.parametrize("panel", PANELS)
def test_what_a_window_passed_is_let_go(panel: str) -> None:
    module = importlib.import_module(f"{panel}_models.cache")
    framework = importlib.import_module({"mlx": "mlx.core", "torch": "torch"}[panel])
    cache, one = module.KeyValueCache(5, 2, block=8), framework.zeros((2, 3, 1, 4))
    for _ in range(50):
        cache.update_and_fetch(one, one)
    assert cache.k.buffer.shape == (2, 3, 8, 4) and cache.k.dropped >= 42
    assert cache.nbytes == 2 * 2 * 3 * 4 * 4 * (5 - 1 + 2)
    fork = cache.take(framework.zeros(1, dtype=framework.int32))
    assert fork.nbytes == cache.nbytes // 2 and fork.k.dropped == cache.k.dropped
