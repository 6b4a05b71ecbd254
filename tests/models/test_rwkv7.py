"""rwkv7 on both panels: its three forms are one function, whatever decays and keys there are."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from specs import init_weights, spec_type
from specs.backend import Arrays, Backend, Batch
from tests.models.forms import close, spec_of, tokens, weights_of

RWKV7 = spec_type("rwkv7")
NAMES = ("r", "w", "k", "v", "kappa", "b", "state")
CHUNK = importlib.import_module("torch_models.rwkv7").CHUNK
FLOOR = -np.exp(-0.5)  # the smallest log decay that the parametrisation allows
each_panel = pytest.mark.parametrize("panel", ["mlx", "torch"])


def inputs(T: int, decays: str = "mixed", repeat: bool = False, D: int = 16) -> Arrays:
    """Of two rows and two heads; `repeat`: the same key at each step, wholly erased."""
    rng = np.random.default_rng(T)
    r, k, v, w, kappa, a = (rng.standard_normal((2, T, 2, D)) for _ in range(6))
    if repeat:
        kappa, a = kappa[:, :1] + 0 * kappa, 0 * a + 50
    kappa = kappa / np.linalg.norm(kappa, axis=-1, keepdims=True)
    depth = {"fastest": 50 + 0 * w, "slowest": w - 14, "mixed": 10 * w}[decays]
    given = {"r": r, "w": FLOOR / (1 + np.exp(-depth)), "k": k, "v": v, "kappa": kappa,
             "b": kappa / (1 + np.exp(-a))}
    state = rng.standard_normal((2, 2, D, D)).astype(np.float32)
    return {**{name: x.reshape(2, T, -1).astype(np.float32) for name, x in given.items()},
            "state": state}


def in_numpy(given: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """(y, state after it) as the paper says it, in float64."""
    S = given["state"].astype(np.float64)
    rows = []
    B, H, D, _ = S.shape
    each = [given[name].astype(np.float64).reshape(B, -1, H, D) for name in NAMES[:-1]]
    for t in range(each[0].shape[1]):
        r, w, k, v, kappa, b = (x[:, t] for x in each)
        S = (S * np.exp(w)[:, :, None] - (S @ kappa[..., None]) * b[:, :, None]
             + v[..., None] * k[:, :, None])
        rows.append((S @ r[..., None]).reshape(B, 1, H * D))
    return np.concatenate(rows, 1), S


def run(panel: str, form: str, given: Arrays, dtype: str = "float32", **options: Any) -> Arrays:
    """Output, state after it, and the gradients of a sum of both by all inputs."""
    mixer = importlib.import_module(f"{panel}_models.rwkv7").TimeMix(
        RWKV7.preset("tiny", n_embd=given["r"].shape[-1], head_dim=given["state"].shape[-1]), 1)
    rng = np.random.default_rng(1)
    ahead = [rng.standard_normal(given[name].shape).astype(np.float32) for name in ("r", "state")]
    function = in_mlx if panel == "mlx" else in_torch
    y, state, grads = function(lambda *args: getattr(mixer, form)(*args, **options),
                               [given[name] for name in NAMES if name in given], ahead, dtype)
    return {"y": y, "after": state, **dict(zip(NAMES, grads, strict=False))}


def in_mlx(form: Any, given: list[np.ndarray], ahead: list[np.ndarray], dtype: str) -> Any:
    import mlx.core as mx

    def total(*args: Any) -> Any:
        y, state = form(*args)
        return (y * mx.array(ahead[0])).sum() + (state * mx.array(ahead[1])).sum(), y, state

    (_, y, state), grads = mx.value_and_grad(total, argnums=range(len(given)))(
        *(mx.array(x) for x in given))
    return np.array(y), np.array(state), [np.array(grad) for grad in grads]


def in_torch(form: Any, given: list[np.ndarray], ahead: list[np.ndarray], dtype: str) -> Any:
    import torch

    args = [torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=True) for x in given]
    y, state = form(*args)
    total = (y * torch.tensor(ahead[0])).sum() + (state * torch.tensor(ahead[1])).sum()
    grads = torch.autograd.grad(total, args, materialize_grads=True)
    return y.numpy(force=True), state.numpy(force=True), [grad.numpy() for grad in grads]


def same(found: Arrays, wanted: Arrays, units: float) -> None:
    """Equal but for `units` of float32 roundoff of each figure."""
    for name, value in wanted.items():
        assert np.isfinite(found[name]).all(), name
        error = np.linalg.norm(found[name].astype(np.float64) - value)
        assert error <= units * 2**-24 * np.linalg.norm(value), (name, error)


@each_panel
@pytest.mark.parametrize("repeat", [False, True], ids=["", "repeated"])
@pytest.mark.parametrize("decays", ["fastest", "slowest", "mixed"])
def test_chunks_are_as_exact_as_single_steps(panel: str, decays: str, repeat: bool) -> None:
    """Values and gradients for all decays that there may be, in float32 against float64."""
    given = inputs(5 * CHUNK + 3, decays, repeat)
    exact = run("torch", "recurrent", given, "float64")
    y, state = in_numpy(given)
    np.testing.assert_allclose(exact["y"], y, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(exact["after"], state, rtol=1e-10, atol=1e-12)
    same(run("torch", "chunkwise", given, "float64"), exact, 1e-6)
    same(run(panel, "chunkwise", given), exact, 12)
