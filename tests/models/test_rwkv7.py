"""rwkv7 on both panels: its three forms are one function, whatever decays and keys there are."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from parity.budget import FACTOR
from specs import init_weights, spec_type
from specs.backend import Arrays, Backend, Batch
from tests.models.forms import close, spec_of, tokens, weights_of

RWKV7 = spec_type("rwkv7")
NAMES = ("r", "w", "k", "v", "kappa", "b", "state")
CHUNK = importlib.import_module("torch_models.rwkv7").CHUNK
FLOOR = -np.exp(-0.5)  # the smallest log decay that the parametrisation allows
each_panel = pytest.mark.parametrize("panel", ["mlx", "torch"])
each_length = pytest.mark.parametrize("T", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 37, 2 * CHUNK])


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
    B, _, C = given["r"].shape
    mixer = importlib.import_module(f"{panel}_models.rwkv7").TimeMix(
        RWKV7.preset("tiny", n_embd=C, head_dim=C // 2), 1)
    rng = np.random.default_rng(1)
    ahead = [rng.standard_normal(shape).astype(np.float32)
             for shape in (given["r"].shape, (B, 2, C // 2, C // 2))]
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


def room(chunk: int = CHUNK) -> float:
    """Units of roundoff: as elsewhere, and what the sum of a chunk's log decays is rounded by."""
    return FACTOR - FLOOR * chunk


def same(found: Arrays, wanted: Arrays, units: float) -> None:
    """Equal but for `units` of float32 roundoff of each figure; of one that is zero by mathematics,
    as the first decay's gradient where there is no state, of all of them."""
    whole = np.linalg.norm([np.linalg.norm(value) for value in wanted.values()])
    for name, value in wanted.items():
        assert np.isfinite(found[name]).all(), name
        error = np.linalg.norm(found[name].astype(np.float64) - value)
        assert error <= units * 2**-24 * (np.linalg.norm(value) or whole), (name, error)


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
    found = run(panel, "chunkwise", given)
    same(found, {name: exact[name] for name in ("y", "after")}, FACTOR)
    same(found, exact, room())


@each_panel
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "from-zero"])
@each_length
def test_three_forms_are_one_function(panel: str, T: int, with_state: bool) -> None:
    """Values and gradients."""
    given = inputs(T)
    if not with_state:
        del given["state"]
    plain = run(panel, "recurrent", given)
    for chunk in (CHUNK, 5):
        same(run(panel, "chunkwise", given, chunk=chunk), plain, room(chunk))
    if T == 1:
        same(run(panel, "step", given), plain, 0)


@each_panel
@pytest.mark.parametrize("D, chunk", [(2, 16), (7, 9), (64, 32), (16, 64)])
def test_longer_chunks_stay_finite(panel: str, D: int, chunk: int) -> None:
    """At the fastest decay, of which a chunk of 64 spans e^39."""
    given = inputs(2 * chunk + 1, "fastest", D=D)
    exact = run("torch", "recurrent", given, "float64")
    same(run(panel, "chunkwise", given, chunk=chunk), exact, room(chunk))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_length
def test_a_model_reads_as_it_steps(backend: Backend, dtype: Any, T: int) -> None:
    """Half precision rounds what goes into products with weights, in both forms alike."""
    spec = spec_of("rwkv7-goose")
    model, data = backend.build(spec, weights_of(spec), dtype), tokens(2, T)
    whole, decoder = backend.logits(model, data), backend.decoder(model, 2)
    stepped = np.stack([decoder.step(data[:, t]) for t in range(T)], 1)
    eps = {"float32": 64 * 2**-24, "bfloat16": 2**-8}[dtype]
    assert np.linalg.norm(stepped - whole) <= eps * np.linalg.norm(whole)


@each_panel
@pytest.mark.parametrize("Q", [1, 2, 3, 16, 37, 64])
def test_unit_triangles_are_inverted(panel: str, Q: int) -> None:
    """Of equal keys, wholly erased, too: there the powers of A reach 10^17 at Q = 64."""
    fast = importlib.import_module(f"{panel}_models.rwkv7_fast")
    framework = importlib.import_module({"mlx": "mlx.core", "torch": "torch"}[panel])
    array = framework.array if panel == "mlx" else framework.tensor
    rng = np.random.default_rng(Q)
    for A in (np.ones((Q, Q)), rng.standard_normal((3, Q, Q)) / max(2, Q**0.5)):
        A = np.tril(A, -1).astype(np.float32)
        found = np.asarray(fast.inverse(array(A)))
        assert close(found @ (np.eye(Q) + A), np.broadcast_to(np.eye(Q), A.shape), 32)
        assert not np.triu(found, 1).any()


@each_panel
def test_the_gradient_by_hand_is_that_of_the_framework(panel: str) -> None:
    fast = importlib.import_module(f"{panel}_models.rwkv7_fast")
    rng = np.random.default_rng(3)
    B, N, H, Q, D = 2, 3, 2, 8, 5
    shapes = ((B, N, H, 2 * Q, D), (B, N, H, 2 * Q, D), (B, N, H, Q, D), (B, N, H, D, 1),
              (B, 1, H, D, D))
    given = [rng.standard_normal(shape).astype(np.float32) / 2 for shape in shapes]
    given[3] = np.exp(-np.abs(given[3]))
    ahead = [rng.standard_normal(given[i].shape).astype(np.float32) for i in (2, 4)]
    function = in_mlx if panel == "mlx" else in_torch
    plain = function(lambda *args: fast.forward(*args)[:2], given, ahead, "float32")
    fast = function(fast.in_chunks, given, ahead, "float32")
    assert np.array_equal(fast[0], plain[0]) and np.array_equal(fast[1], plain[1])
    for one, other in zip(fast[2], plain[2], strict=True):
        assert close(one, other, 32)


@each_panel
def test_a_key_of_zeros_has_a_gradient(panel: str) -> None:
    """κ is then zero, and no number is divided by its length."""
    mixer = importlib.import_module(f"{panel}_models.rwkv7").TimeMix(RWKV7.preset("tiny"), 1)
    zero = np.zeros((1, 3, 32), np.float32)
    function = in_mlx if panel == "mlx" else in_torch
    y, _, (grad,) = function(lambda k: (mixer.unit(k), k), [zero], [zero + 1, zero], "float32")
    assert not y.any() and np.isfinite(grad).all()


@pytest.mark.parametrize("preset, count", [
    ("demo", 615_840), ("10m", 12_013_440), ("0.1b", 191_034_624)])
def test_parameter_count(preset: str, count: int) -> None:
    """The smallest is the paper's: 2CV + 4C + LC(12C + 2·(ranks) + 19) − (2C·rank_v + C)."""
    spec: Any = RWKV7.preset(preset)
    C, L, ranks = spec.n_embd, spec.n_layer, spec.ranks
    assert spec.param_count() == count == (
        2 * C * spec.vocab_size + 4 * C + L * C * (12 * C + 2 * sum(ranks.values()) + 19)
        - (2 * C * ranks["v"] + C))


def test_a_state_is_small_at_any_length() -> None:
    spec = RWKV7.preset("0.1b")
    assert spec.decode_state_bytes(1) == spec.decode_state_bytes(65536) == 4 * 12 * 768 * (64 + 2)


@pytest.mark.parametrize("form", ["rwkv7-goose", "rwkv7-odd"])
def test_costs_are_those_of_a_plain_count(form: str) -> None:
    spec: Any = spec_of(form)
    C, D, H, F, L = spec.n_embd, spec.head_dim, spec.heads, spec.mlp_width, spec.n_layer
    r = spec.ranks
    flops = 2 * C * spec.vocab_size
    for i in range(L):
        flops += 4 * 2 * C * C + 2 * 2 * C * F  # r, k, v, o; up, down
        flops += 2 * 2 * C * (r["w"] + r["a"] + r["g"] + (r["v"] if i else 0))
        flops += H * 4 * 2 * D * D  # S κ, (S κ)(κ ⊙ a)ᵀ, v kᵀ, S r
    assert spec.flops_per_token(7) == spec.flops_per_token(700) == flops
    embed = C * spec.vocab_size
    assert spec.decode_traffic(9) == 4 * (spec.param_count() - embed) + 2 * (
        4 * L * H * D * D + 4 * L * 2 * C)


def test_what_decays_and_what_moves_faster() -> None:
    spec = spec_of("rwkv7-goose")
    parts = {param.name.rpartition("layers.")[2].partition(".")[2] or param.name: param
             for param in spec.params()}
    assert {name for name, param in parts.items() if param.decays} == {
        "weight", *(f"mixer.{x}_proj.weight" for x in "rkvo"), "mlp.up_proj.weight",
        "mlp.down_proj.weight"}
    assert {name: param.lr_scale for name, param in parts.items() if param.lr_scale != 1} == {
        "mixer.w0": 2}


def test_initial_weights_are_the_published_ones() -> None:
    """Entry by entry, as the paper's code goes about it."""
    spec: Any = RWKV7.preset("tiny", n_layer=3, vocab_size=96)
    C, D, L, weights = 32, 8, 3, init_weights(spec)
    for layer in range(L):
        part = {name.removeprefix(f"layers.{layer}."): w for name, w in weights.items()
                if name.startswith(f"layers.{layer}.")}
        deep, late = layer / (L - 1), 1 - layer / L
        for i in (0, 5, 8, C - 1):
            place = (i % D - (D - 1) / 2) / ((D - 1) / 2)
            zig, lin = place * abs(place), i / (C - 1) - 0.5
            wanted = {
                "mixer.x_r": 1 - (i / C) ** (0.2 * late), "mixer.x_w": 1 - (i / C) ** (0.9 * late),
                "mixer.x_k": 1 - (i / C) ** (0.7 * late), "mixer.x_v": 1 - (i / C) ** (0.7 * late),
                "mixer.x_a": 1 - (i / C) ** (0.9 * late), "mixer.x_g": 1 - (i / C) ** (0.2 * late),
                "mlp.x_k": 1 - (i / C) ** late**4,
                "mixer.w0": -6 + 6 * (i / (C - 1)) ** (1 + deep**0.3) + 0.5 + 2.5 * zig,
                "mixer.a0": -0.19 + 0.3 * zig + 0.4 * lin, "mixer.v0": 0.73 - 0.4 * lin,
                "mixer.k_k": 0.71 - 0.1 * lin, "mixer.k_a": 1.02,
                "mixer.ln_x.weight": ((layer + 1) / L) ** 0.7, "mixer.ln_x.bias": 0.0}
            for name, value in wanted.items():
                if name != "mixer.v0" or layer:
                    assert part[name][i] == pytest.approx(value, abs=1e-6), (layer, name)
        assert np.all(part["mixer.r_k"] == np.float32(-0.04))
        assert not any(part[name].any() for name in ("mixer.o_proj.weight", "mlp.down_proj.weight",
                                                     "mixer.w1", "mixer.a1", "mixer.g1"))
        for name, gain in (("mixer.r_proj.weight", 1), ("mixer.k_proj.weight", 0.1),
                           ("mixer.v_proj.weight", 1), ("mlp.up_proj.weight", 1),
                           ("mixer.w2", 0.1), ("mixer.g2", 0.1)):
            assert is_orthogonal(part[name], gain), name
    assert 0.9e-4 < np.abs(weights["embed.weight"]).max() <= 1e-4
    assert is_orthogonal(weights["lm_head.weight"], 0.5 * 3**0.5)
    assert RWKV7.preset("tiny", n_layer=1).param_count()  # no depth to divide by


def is_orthogonal(weight: np.ndarray, gain: float) -> bool:
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    return np.allclose(wide @ wide.T, gain**2 * np.eye(len(wide)), atol=1e-6)


def test_orthogonal_matrices_do_not_depend_on_the_signs_of_a_library() -> None:
    """R's diagonal is positive: the first column is that of the normal matrix, at its length."""
    from specs.init import orthogonal

    rng, again = (np.random.default_rng(0) for _ in range(2))
    drawn, found = rng.standard_normal((9, 4)), orthogonal()(again, (9, 4))
    np.testing.assert_allclose(found[:, 0], drawn[:, 0] / np.linalg.norm(drawn[:, 0]))
    assert np.all(np.diagonal(found.T @ drawn) > 0)


def test_all_layers_learn_the_values_of_the_first(backend: Backend) -> None:
    """Its v_proj gets a gradient also where its own state is not read."""
    spec = spec_of("rwkv7-goose")
    weights, data = weights_of(spec), tokens(1, 9)
    weights["layers.0.mixer.o_proj.weight"] *= 0
    _, grads = backend.loss_and_grads(backend.build(spec, weights), Batch(data, data))
    assert grads["layers.0.mixer.v_proj.weight"].any()
    assert not grads["layers.0.mixer.r_proj.weight"].any()
