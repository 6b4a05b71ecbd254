"""Long convolutions: three forms, one function, in values, gradients and what they do not see."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest

from specs.backend import Dtype

CHUNK = 7
LENGTHS = [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 4]
EPS = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
FORMS = ["direct", "chunked", "fft"]
PANELS = ["mlx", "torch"]
B, K, D = 2, 3, 5
each_panel = pytest.mark.parametrize("panel", PANELS)
each_form = pytest.mark.parametrize("form", FORMS)


def panel_of(name: str, patch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module(f"{name}_models.longconv")
    patch.setattr(module, "CHUNK", CHUNK)
    return module


def inputs(T: int, spare: int = 3) -> list[np.ndarray]:
    """x, h with some distances more than there are, and the gradient at y."""
    rng = np.random.default_rng(T)
    return [rng.standard_normal(shape).astype(np.float32)
            for shape in ((B, T, K, D), (K, T + spare), (B, T, K, D))]


def exact(x: np.ndarray, h: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
    """y and the gradients at x and h, from the definition in float64."""
    x, h, dy = (a.astype(np.float64) for a in (x, h, dy))
    y, dx, dh = np.zeros_like(x), np.zeros_like(x), np.zeros_like(h)
    for t in range(x.shape[1]):
        for s in range(t + 1):
            y[:, t] += h[:, t - s, None] * x[:, s]
            dx[:, s] += h[:, t - s, None] * dy[:, t]
            dh[:, t - s] += (dy[:, t] * x[:, s]).sum((0, 2))
    return [y, dx, dh]


def computed(module: Any, form: str, given: list[np.ndarray], dtype: Dtype) -> list[np.ndarray]:
    """The same from the panel, in float32."""
    convolve = getattr(module, form)
    if module.__name__.startswith("mlx"):
        import mlx.core as mx

        x, h, dy = map(mx.array, given)

        def weighted(x: Any, h: Any) -> Any:
            y = convolve(x, h)
            return (y * dy).sum(), y

        (_, y), grads = mx.value_and_grad(weighted, argnums=(0, 1))(
            x.astype(getattr(mx, dtype)), h)
        assert y.dtype == grads[0].dtype == getattr(mx, dtype) and grads[1].dtype == mx.float32
        return [np.array(a.astype(mx.float32)) for a in (y, *grads)]
    import torch

    x, h, dy = map(torch.tensor, given)
    x, h = x.to(getattr(torch, dtype)).requires_grad_(), h.requires_grad_()
    y = convolve(x, h)
    grads = torch.autograd.grad((y * dy).sum(), (x, h))
    assert y.dtype == grads[0].dtype == getattr(torch, dtype) and grads[1].dtype == torch.float32
    return [a.float().numpy(force=True) for a in (y, *grads)]


@each_panel
@each_form
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("T", LENGTHS)
def test_every_form_is_the_definition(panel: str, form: str, dtype: Dtype, T: int,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A product's error is at most its roundings, those of its factors and of the result, times
    the sum of the sizes of what was added; a transform of n entries adds log₂ n."""
    given = inputs(T)
    found = computed(panel_of(panel, monkeypatch), form, given, dtype)
    sizes = exact(*(np.abs(a) for a in given))
    roundings = 3 + (math.log2(4 * T) if form == "fft" else 0)
    for value, truth, size in zip(found, exact(*given), sizes, strict=True):
        room = (roundings * EPS[dtype] + T * B * D * 2.0**-24) * size
        if form == "fft":
            room = np.full_like(room, room.max())
        assert (np.abs(value - truth) <= room).all()
        assert truth.any()


@each_panel
@each_form
@pytest.mark.parametrize("T", [CHUNK, 40])
def test_nothing_later_is_seen(panel: str, form: str, T: int,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit by products; by transforms within the roundings of one, far below one number."""
    module = panel_of(panel, monkeypatch)
    x, h, dy = inputs(T)
    before = computed(module, form, [x, h, dy], "float32")[0]
    for t in (1, CHUNK - 1, T - 1):
        other = x.copy()
        other[:, t:] += 1
        after = computed(module, form, [other, h, dy], "float32")[0]
        room = 0 if form != "fft" else 2 * math.log2(4 * T) * 2.0**-24 * (
            np.linalg.norm(h) * np.linalg.norm(other))
        moved = np.abs(after - before)
        assert moved[:, :t].max() <= room < 0.01 * moved[:, t].min()


@each_panel
@pytest.mark.parametrize("T", [50, 1000])
def test_growing_outputs_do_not_drown_the_first_ones(panel: str, T: int) -> None:
    """Sums of ever more numbers above zero: each is rounded by what is eight times as large."""
    module = importlib.import_module(f"{panel}_models.longconv")
    x, h, dy = (np.abs(a) for a in inputs(T))
    truth, found = (computed(module, form, [x, h, dy], "float32")[0] for form in ("direct", "fft"))
    largest = truth.max(axis=(0, 2, 3))[np.minimum(8 * np.arange(T) + 7, T - 1)]
    room = math.log2(4 * T) * 2.0**-24 * largest
    assert (np.abs(found - truth).max(axis=(0, 2, 3)) <= room).all()


@each_panel
@pytest.mark.parametrize("T", [200, 333, 1000])
def test_forms_agree_on_longer_texts(panel: str, T: int) -> None:
    """With chunks as long as they are."""
    module = importlib.import_module(f"{panel}_models.longconv")
    given = inputs(T)
    by_form = [computed(module, form, given, "float32") for form in FORMS]
    for values in zip(*by_form, strict=True):
        for value in values[1:]:
            assert np.linalg.norm(value - values[0]) < 16 * 2**-24 * np.linalg.norm(values[0])


@each_panel
def test_a_transform_wraps_nothing_around(panel: str) -> None:
    module = importlib.import_module(f"{panel}_models.longconv")
    for T in (*range(1, 300), 4096, 4097, 65536):
        size = module.size(T)
        assert 2 * T - 1 <= size < 2 * T * 4 / 3 + 1 and size // (size & -size) in (1, 3, 5)


@each_panel
@pytest.mark.parametrize("N", [1, 9, 128, 4096])
def test_the_form_chosen_is_one_of_them(panel: str, N: int) -> None:
    """Products for few tokens, transforms for many, and in between nothing turns back."""
    module = importlib.import_module(f"{panel}_models.longconv")
    chosen = [FORMS.index(module.fastest(T, N)) for T in range(1, 2000)]
    assert chosen == sorted(chosen) and (chosen[0], chosen[-1]) == (0, 2)
    assert (1 in chosen) == (N > 50)
