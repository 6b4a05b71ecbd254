"""mamba2 on both panels: its three forms are one function, its sums of decays stay exact."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from specs import init_weights, spec_type
from specs.backend import Backend
from specs.base import Spec
from tests.models.forms import close, logits, spec_of, tokens, weights_of

MAMBA2 = spec_type("mamba2")
CHUNK = 8
each_panel = pytest.mark.parametrize("panel", ["mlx", "torch"])
each_length = pytest.mark.parametrize("T", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 29])


def model_code(panel: str, name: str = "mamba2") -> Any:
    return importlib.import_module(f"{panel}_models.{name}")


def given(spec: Any, T: int, stateful: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """What a form reads: Δu, Δa, b, c and perhaps a state; decays fast, slow and mixed."""
    rng = np.random.default_rng(seed)
    H, P, G, N = spec.heads, spec.head_dim, spec.n_groups, spec.d_state
    arrays = {"u": rng.standard_normal((2, T, H, P)), "b": rng.standard_normal((2, T, G, N)),
              "c": rng.standard_normal((2, T, G, N)), "da": -np.exp(rng.normal(-2, 2, (2, T, H)))}
    if stateful:
        arrays["state"] = rng.standard_normal((2, H, P, N))
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def run(panel: str, spec: Spec, form: str, arrays: dict[str, np.ndarray],
        half: bool = False) -> dict[str, np.ndarray]:
    """Output, last state, and the gradients of a weighted sum of both by all that is read."""
    rng = np.random.default_rng(1)
    made = getattr(model_code(panel).StateSpace(spec), form)
    B, T, H, P = arrays["u"].shape
    ahead = [rng.standard_normal(shape).astype(np.float32)
             for shape in ((B, T, H, P), (B, H, P, arrays["b"].shape[-1]))]
    if panel == "mlx":
        return mlx_run(made, arrays, ahead, half)
    return torch_run(made, arrays, ahead, half)


def mlx_run(made: Any, arrays: dict[str, np.ndarray], ahead: list[np.ndarray],
            half: bool) -> dict[str, np.ndarray]:
    import mlx.core as mx

    def total(held: dict[str, Any]) -> Any:
        b, c = (held[name].astype(mx.bfloat16 if half else mx.float32) for name in "bc")
        y, state = made(held["u"], held["da"], b, c, held.get("state"))
        assert y.dtype == state.dtype == mx.float32
        return (y * mx.array(ahead[0])).sum() + (state * mx.array(ahead[1])).sum(), y, state

    (_, y, state), grads = mx.value_and_grad(total)(
        {name: mx.array(array) for name, array in arrays.items()})
    found = {"y": y, "last": state, **{f"d {name}": grad for name, grad in grads.items()}}
    return {name: np.array(array) for name, array in found.items()}


def torch_run(made: Any, arrays: dict[str, np.ndarray], ahead: list[np.ndarray],
              half: bool) -> dict[str, np.ndarray]:
    import torch

    held = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    b, c = (held[name].to(torch.bfloat16 if half else torch.float32) for name in "bc")
    y, state = made(held["u"], held["da"], b, c, held.get("state"))
    assert y.dtype == state.dtype == torch.float32
    grads = torch.autograd.grad((y, state), list(held.values()), list(map(torch.tensor, ahead)),
                                materialize_grads=True)
    found = {"y": y, "last": state,
             **{f"d {name}": grad for name, grad in zip(held, grads, strict=True)}}
    return {name: array.numpy(force=True) for name, array in found.items()}


@each_panel
@each_length
@pytest.mark.parametrize("stateful", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("form", ["mamba2-plain", "mamba2-groups"])
def test_the_chunked_form_is_the_recurrent_one(panel: str, T: int, stateful: bool,
                                               form: str) -> None:
    """Values and all gradients; the recurrent form is `step` after `step`."""
    spec = spec_of(form, chunk_size=CHUNK)
    arrays = given(spec, T, stateful)
    one, two = (run(panel, spec, form, arrays) for form in ("recurrent", "chunked"))
    size = np.linalg.norm(one["d da"])
    for name, value in one.items():
        room = 64 * 2**-24 * max(np.linalg.norm(value), size * (name == "d da"))
        assert np.linalg.norm(two[name] - value) <= room, name


@each_panel
@each_length
def test_forms_agree_in_bfloat16(panel: str, T: int) -> None:
    spec = spec_of("mamba2-groups", chunk_size=CHUNK)
    arrays = given(spec, T, True)
    one, two = (run(panel, spec, form, arrays, half=True) for form in ("recurrent", "chunked"))
    for name, value in one.items():
        assert np.linalg.norm(two[name] - value) <= 2 * 2**-8 * np.linalg.norm(value), name


@each_panel
def test_the_recurrence_is_its_definition(panel: str) -> None:
    spec: Any = spec_of("mamba2-groups")
    arrays = given(spec, 5, True)
    u, b, c, da, S = (arrays[name].astype(float) for name in ("u", "b", "c", "da", "state"))
    wanted = np.zeros_like(u)
    for t in range(5):
        for h in range(spec.heads):
            g = h * spec.n_groups // spec.heads
            S[:, h] = np.exp(da[:, t, h])[:, None, None] * S[:, h] + np.einsum(
                "bp,bn->bpn", u[:, t, h], b[:, t, g])
            wanted[:, t, h] = np.einsum("bpn,bn->bp", S[:, h], c[:, t, g])
    found = run(panel, spec, "recurrent", arrays)
    assert close(found["y"], wanted) and close(found["last"], S)


@pytest.mark.parametrize("chunk", [1, 2, 7, 40, 256])
def test_chunks_change_nothing(backend: Backend, chunk: int) -> None:
    spec = spec_of("mamba2-plain")
    weights = weights_of(spec)
    assert close(logits(backend, spec.replace(chunk_size=chunk), weights),
                 logits(backend, spec, weights), 200)


def framework(panel: str) -> Any:
    return importlib.import_module({"mlx": "mlx.core", "torch": "torch"}[panel])


def array(panel: str, x: np.ndarray) -> Any:
    return framework(panel).array(x) if panel == "mlx" else framework(panel).tensor(x)


@each_panel
def test_sums_of_decays_are_exact_after_a_long_way(panel: str) -> None:
    """What follows strong decays decays slowly: a difference of large sums would be off by 1e-5."""
    x = np.full(256, -1e-3, np.float32) * np.linspace(1, 2, 256, dtype=np.float32)
    x[:100] = -37.1
    total = np.cumsum(x.astype(float))
    wanted = total[:, None] - total
    found = np.asarray(model_code(panel).segment_sums(array(panel, x)))
    below, near = np.tril_indices(256), np.s_[100:, 100:]
    assert np.all(np.isneginf(found[np.triu_indices(256, 1)]))
    assert np.abs(found - wanted)[below].max() <= 2**-22 * np.abs(wanted).max()
    error = np.tril(found - wanted)[near]
    assert np.abs(error).max() < 5e-7
    plain = np.cumsum(x)
    assert np.abs(np.tril(plain[:, None] - plain - wanted)[near]).max() > 1e-5


@each_panel
@pytest.mark.parametrize("da", [0.0, -1e-9, -20.0, -1e4, -1e30])
def test_any_decay_has_finite_gradients(panel: str, da: float) -> None:
    spec = spec_of("mamba2-plain", chunk_size=CHUNK)
    arrays = given(spec, 21, True)
    arrays["da"][:, ::2] = da
    one, two = (run(panel, spec, form, arrays) for form in ("recurrent", "chunked"))
    for name, value in one.items():
        assert np.all(np.isfinite(two[name])), name
        if name != "d da":
            assert np.linalg.norm(two[name] - value) <= 64 * 2**-24 * np.linalg.norm(value), name


@each_panel
@pytest.mark.parametrize("taps", [2, 4, 7])
@pytest.mark.parametrize("T", [1, 2, 11])
def test_the_convolution_and_its_gradients(panel: str, taps: int, T: int) -> None:
    """Against the definition in float64."""
    rng = np.random.default_rng(0)
    w, weight, g = (rng.standard_normal(shape).astype(np.float32)
                    for shape in ((2, T + taps - 1, 5), (5, taps), (2, T, 5)))
    wanted = {"y": np.zeros((2, T, 5)), "dw": np.zeros(w.shape), "dweight": np.zeros(weight.shape)}
    for t in range(T):
        for j in range(taps):
            wanted["y"][:, t] += w[:, t + j].astype(float) * weight[:, j]
            wanted["dw"][:, t + j] += g[:, t].astype(float) * weight[:, j]
            wanted["dweight"][:, j] += (g[:, t].astype(float) * w[:, t + j]).sum(0)
    convolve = model_code(panel, "shortconv").convolve
    if panel == "mlx":
        import mlx.core as mx

        y = convolve(mx.array(w), mx.array(weight))
        grads = mx.grad(lambda w, weight: (convolve(w, weight) * mx.array(g)).sum(), (0, 1))(
            mx.array(w), mx.array(weight))
    else:
        import torch

        inputs = [torch.tensor(x, requires_grad=True) for x in (w, weight)]
        y = convolve(*inputs)
        grads = torch.autograd.grad(y, inputs, torch.tensor(g))
        y = y.detach()
    for name, found in zip(wanted, (y, *grads), strict=True):
        assert close(np.asarray(found), wanted[name], 8), name


def test_limits_of_the_time_step_hold_in_decoding(backend: Backend) -> None:
    """They change the function, and token by token as much as at once."""
    spec = spec_of("mamba2-limits", time_step_limit=[0.3, 0.5])
    weights, data = weights_of(spec), tokens()
    model = backend.build(spec, weights)
    whole, decoder = backend.logits(model, data), backend.decoder(model, 2)
    steps = np.stack([decoder.step(data[:, t]) for t in range(40)], 1)
    free = logits(backend, spec.replace(time_step_limit=[0, None]), weights)
    assert close(steps, whole, 200) and np.linalg.norm(free - whole) > 0.01 * np.linalg.norm(whole)


def test_initial_weights_are_as_published() -> None:
    spec: Any = MAMBA2.preset("12m")
    weights = init_weights(spec)
    groups = {param.name.removeprefix("layers.3.mixer."): param for param in spec.params()}
    dt = np.log1p(np.exp(weights["layers.3.mixer.dt_bias"]))
    rate = np.exp(weights["layers.3.mixer.A_log"])
    assert 1e-3 <= dt.min() < 4e-3 and 0.03 < dt.max() <= 0.1 and 1 <= rate.min() < rate.max() <= 16
    assert np.all(weights["layers.3.mixer.D"] == 1)
    assert not any(groups[name].decays for name in ("dt_bias", "A_log", "D", "conv_bias"))
    assert groups["conv_weight"].decays and groups["conv_weight"].group == "filter"
    largest = np.abs(weights["layers.3.mixer.out_proj.weight"]).max()
    assert 0.99 < largest * (768 * 12) ** 0.5 <= 1


@pytest.mark.needs("mlx")
def test_exp_and_silu_of_mlx_on_the_cpu() -> None:
    """By a power: as exact as float32 lets exp be, and finite gradients everywhere."""
    import mlx.core as mx
    import mlx.nn as nn

    from mlx_models.layers import exp, sigmoid, silu

    x = np.concatenate([np.linspace(-90, 88, 4001), [-np.inf, -1e30, -0.0]]).astype(np.float32)
    exact = np.exp(x.astype(float))
    found = np.array(exp(mx.array(x)))
    room = 2**-24 * (2 + 2 * np.where(np.isinf(x), 0, np.abs(x)))
    assert np.all(np.abs(found - exact) <= room * exact + 1e-38) and found[-3] == 0
    np.testing.assert_array_equal(np.array(mx.grad(lambda x: exp(x).sum())(mx.array(x))), found)
    x = np.concatenate([np.linspace(-300, 300, 4001), [-1e20, 1e20]]).astype(np.float32)
    exact = x / (1 + np.exp(-x.astype(float).clip(-700)))
    room = 2**-24 * (4 + 2 * np.minimum(np.abs(x), 80))
    assert np.all(np.abs(np.array(silu(mx.array(x))) - exact) <= room * np.abs(exact) + 1e-14)
    slope = np.array(mx.grad(lambda x: silu(x).sum())(mx.array(x)))
    share = 1 / (1 + np.exp(-x.astype(float).clip(-700)))
    assert np.all(np.abs(np.array(sigmoid(mx.array(x))) - share) <= room * share + 1e-14)
    for function, theirs in ((silu, nn.silu), (sigmoid, mx.sigmoid)):  # its own in half precision
        half = mx.array(x[:-2] / 3).astype(mx.bfloat16)
        assert function(half).dtype == mx.bfloat16 and mx.array_equal(function(half), theirs(half))
    assert np.abs(slope - share * (1 + x * (1 - share))).max() < 1e-6
