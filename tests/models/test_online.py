"""Long convolutions a few tokens at a time, plain and by tiles, are the sums of the definition."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specs.backend import BACKENDS
from specs.online import KINDS, held, moved
from tests.models.forms import close

BLOCK = 4
each_panel = pytest.mark.parametrize("panel", BACKENDS)
each_kind = pytest.mark.parametrize("kind", KINDS)


def made(panel: str, kind: str, size: int) -> Any:
    module = importlib.import_module(f"{panel}_models.online")
    return module.PlainConv(size) if kind == "cache" else module.OnlineConv(size, BLOCK)


def array(panel: str, x: np.ndarray) -> Any:
    if panel == "mlx":
        return importlib.import_module("mlx.core").array(x)
    return importlib.import_module("torch").tensor(x)


def drawn(B: int, T: int, K: int, D: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """x (B, T, K, D) and h (K, size)."""
    rng = np.random.default_rng([B, T, K, D, size])
    x, h = rng.standard_normal((B, T, K, D)), rng.standard_normal((K, size))
    return x.astype(np.float32), h.astype(np.float32)


def wanted(x: np.ndarray, h: np.ndarray) -> np.ndarray:
    y = np.zeros(x.shape)
    for t in range(x.shape[1]):
        for s in range(t + 1):
            y[:, t] += h[:, t - s, None].astype(np.float64) * x[:, s]
    return y


def read(conv: Any, panel: str, x: np.ndarray, h: np.ndarray, pieces: list[int]) -> np.ndarray:
    cuts = np.cumsum(pieces)[:-1]
    return np.concatenate([np.asarray(conv(array(panel, piece), lambda: array(panel, h)))
                           for piece in np.split(x, cuts, axis=1)], axis=1)


@each_panel
@each_kind
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 30),
       st.sampled_from([(2, 3, 1), (1, 2, 3), (3, 1, 1)]))
@settings(max_examples=12, deadline=None)
def test_pieces_of_any_size_are_the_definition(panel: str, kind: str, pieces: list[int],
                                               room: int, shape: tuple[int, int, int]) -> None:
    B, K, D = shape
    T = sum(pieces)
    x, h = drawn(B, T, K, D, T + room)
    conv = made(panel, kind, T + room)
    assert close(read(conv, panel, x, h, pieces), wanted(x, h), 16)
    assert conv.offset == T
    assert conv.nbytes == 4 * B * K * D * held(T, T + room, kind, BLOCK)


@each_panel
@each_kind
@pytest.mark.parametrize("size", [64, 65, 101, 7, 4])
def test_token_by_token_to_the_last(panel: str, kind: str, size: int) -> None:
    x, h = drawn(2, size, 3, 1, size)
    assert close(read(made(panel, kind, size), panel, x, h, [1] * size), wanted(x, h), 16)


@each_panel
@each_kind
def test_the_kernel_is_asked_for_once(panel: str, kind: str) -> None:
    x, h = drawn(1, 20, 2, 1, 20)
    asked = []

    def kernel() -> Any:
        asked.append(1)
        return array(panel, h)

    conv = made(panel, kind, 20)
    for t in range(20):
        conv(array(panel, x[:, t : t + 1]), kernel)
        if t == 10:
            conv = conv.take(array(panel, np.zeros(1, np.int32)))
    assert len(asked) == 1


@each_panel
@each_kind
@pytest.mark.parametrize("T", [0, 1, 3, 4, 7, 21, 48])
def test_another_goes_on_where_it_stood(panel: str, kind: str, T: int) -> None:
    """On either panel; and a copy of some sequences, which then is its own."""
    x, h = drawn(3, 64, 2, 1, 64)
    y = wanted(x, h)
    conv = made(panel, kind, 64)
    if T:
        read(conv, panel, x[:, :T], h, [T])
    arrays = {name: np.asarray(a).copy() for name, a in conv.arrays().items()}
    fork = conv.take(array(panel, np.array([2, 0], np.int32)))
    found = read(fork, panel, x[[2, 0], T:], h, [1] * (64 - T))
    assert close(found, y[[2, 0], T:], 16)
    for other in BACKENDS:
        again = made(other, kind, 64)
        again.load({name: array(other, a) for name, a in arrays.items()}, T, None)
        assert (again.offset, again.nbytes) == (T, 4 * 3 * 2 * held(T, 64, kind, BLOCK))
        assert close(read(again, other, x[:, T:], h, [1, 63 - T]), y[:, T:], 16)
    for name, a in conv.arrays().items():
        np.testing.assert_array_equal(a, arrays[name])


@each_panel
@each_kind
def test_halves_are_added_up_in_float32(panel: str, kind: str) -> None:
    x, h = drawn(2, 50, 3, 1, 64)
    half = array(panel, x)
    half = half.astype(importlib.import_module("mlx.core").float16) if panel == "mlx" \
        else half.half()
    conv = made(panel, kind, 64)
    y = conv(half, lambda: array(panel, h))
    assert y.dtype == half.dtype
    found, exact = np.asarray(y).astype(np.float64), wanted(x.astype(np.float16), h)
    assert np.abs(found - exact).max() <= (2**-11 + 2**-20) * np.abs(exact).max()
    assert all(str(a.dtype).endswith("float32") for a in conv.arrays().values())


@each_panel
def test_a_token_meets_few_others(panel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that go into products: of 1024 tokens half a block each, and each power of two of
    tokens U, once in 2·U."""
    module = importlib.import_module(f"{panel}_models.online")
    work = []
    for name in ("last", "ahead"):
        plain = getattr(module.Kernel, name)

        def counted(self: Any, inputs: Any, *T: int, plain: Any = plain) -> Any:
            work.append(inputs.shape[2])
            return plain(self, inputs, *T)

        monkeypatch.setattr(module.Kernel, name, counted)
    x, h = drawn(1, 1023, 1, 1, 2048)
    read(made(panel, "online", 2048), panel, x, h, [1] * 1023)
    assert sum(work) < 1024 * ((BLOCK + 1) / 2 + 8 / 2)
    assert max(work) == 512
    work.clear()
    read(made(panel, "online", 2048), panel, x, h, [1023])
    assert sum(work) < 2 * 1024 + BLOCK and len(work) == 16 + 1


@pytest.mark.parametrize("size", [4, 100, 1024])
def test_what_is_held_stays_below_twice_the_inputs(size: int) -> None:
    assert [held(T, size, "cache", BLOCK) for T in range(size + 1)] == list(range(size + 1))
    for T in range(size + 1):
        assert T <= held(T, size, "online", BLOCK) <= min(2 * T, size) + T % BLOCK
    assert moved(1 << 16, 1 << 17) < 2 * moved(256, 1 << 17) < moved(1 << 16, 1 << 17, "cache")
