"""Fused, plain and chunked attention are the same function, on both panels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from specs import init_weights, spec_type
from specs.backend import Backend, Batch, load_backend
from specs.errors import UserError
from tests.models.forms import FORMS, close, logits, spec_of, tokens

CHUNK = 8  # in these tests
OTHERS = ["plain", "chunked"]


class Case(NamedTuple):
    """T queries, S keys, H query heads on Hkv others, D and Dv entries, what is seen."""

    T: int
    S: int
    mask: str | None = "causal"
    H: int = 2
    Hkv: int = 2
    D: int = 6
    Dv: int = 6

    def __str__(self) -> str:
        return "-".join(f"{name}{value}" for name, value in self._asdict().items())


def square(T: int, **other: Any) -> Case:
    return Case(T, T, **other)


CASES = [*(square(T) for T in (1, 2, 7, 8, 9, 29)), square(17, H=6, Hkv=2), square(17, H=4, Hkv=1),
         square(17, D=10, Dv=4), square(9, D=4, Dv=10), Case(1, 29, None), Case(5, 16, None),
         Case(3, 17, "window"), square(29, mask="window"), square(29, mask="sinks"),
         square(25, mask="sinks", H=4, D=10, Dv=4), Case(10, 31, "rest")]


def seen(case: Case) -> np.ndarray:
    """(T, S) bool: the queries are the last of S positions."""
    t, s = np.arange(case.S - case.T, case.S)[:, None], np.arange(case.S)
    return {None: s >= 0 * t, "causal": s <= t, "rest": s <= t,
            "window": (s <= t) & (s > t - 3),
            "sinks": (s <= t) & ((s > t - 3) | (s < 2))}[case.mask]


def arrays(case: Case) -> list[np.ndarray]:
    """q, k, v and the gradient at the output; some scores are large."""
    rng = np.random.default_rng(0)
    shapes = [(case.H, case.T, case.D), (case.Hkv, case.S, case.D), (case.Hkv, case.S, case.Dv),
              (case.H, case.T, case.Dv)]
    return [rng.normal(0, 2, (2, *shape)).astype(np.float32) for shape in shapes]


def formula(case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray,
            dy: np.ndarray) -> list[np.ndarray]:
    """y, dq, dk, dv in float64."""
    q, k, v, dy = (each.astype(np.float64) for each in (q, k, v, dy))
    group, scale = case.H // case.Hkv, case.D**-0.5
    k, v = (each.repeat(group, axis=1) for each in (k, v))
    scores = np.where(seen(case), q @ k.swapaxes(2, 3) * scale, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    y, dp = p @ v, dy @ v.swapaxes(2, 3)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    dk, dv = (each.reshape(2, case.Hkv, group, case.S, -1).sum(2)
              for each in (ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ dy))
    return [y, ds @ k, dk, dv]


def on_mlx(case: Case, form: str, dtype: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    mx = importlib.import_module("mlx.core")
    attention = importlib.import_module("mlx_models.attention").attention
    *given, dy = (mx.array(each).astype(getattr(mx, dtype)) for each in arrays)
    mask = case.mask if case.mask in (None, "causal") else mx.array(seen(case))
    y, grads = mx.vjp(lambda q, k, v: attention(q, k, v, mask, form), given, [dy])
    assert y[0].dtype == getattr(mx, dtype)
    return [np.array(each.astype(mx.float32)) for each in (*y, *grads)]


def on_torch(case: Case, form: str, dtype: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    torch = importlib.import_module("torch")
    attention = importlib.import_module("torch_models.attention").attention
    *given, dy = (torch.tensor(each).to(getattr(torch, dtype)) for each in arrays)
    mask = case.mask if case.mask in (None, "causal") else torch.tensor(seen(case))
    given = [each.requires_grad_() for each in given]
    y = attention(*given, mask, form)
    assert y.dtype == getattr(torch, dtype)
    y.backward(dy)
    return [each.detach().double().numpy() for each in (y, *(each.grad for each in given))]


@pytest.fixture(params=["mlx", "torch"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    load_backend(request.param, "cpu")
    monkeypatch.setattr(f"{request.param}_models.attention.CHUNK", CHUNK)
    return {"mlx": on_mlx, "torch": on_torch}[request.param]


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """Relative; where a gradient is a difference of equal terms, to terms of size 1."""
    return float(np.linalg.norm(found - truth) / max(np.linalg.norm(truth), truth.size**0.5))


@pytest.mark.parametrize("form", ["sdpa", *OTHERS])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_the_formula_s(run: Callable[..., Any], case: Case,
                                                form: str) -> None:
    data = arrays(case)
    for name, found, truth in zip("y dq dk dv".split(), run(case, form, "float32", data),
                                  formula(case, *data), strict=True):
        assert found.shape == truth.shape and error(found, truth) < 64 * 2**-24, name


@pytest.mark.parametrize("form", OTHERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", [square(1), square(29, H=4), square(29, mask="sinks", Dv=4)],
                         ids=str)
def test_half_precision_is_as_near_as_the_fused_form(run: Callable[..., Any], case: Case,
                                                     dtype: str, form: str) -> None:
    """`plain` rounds its scores, which the fused kernel of PyTorch does not: scores of size s part
    by s·eps, here up to 16."""
    data, eps = arrays(case), {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    data = [each / 2 for each in data]
    fused, found = (run(case, each, dtype, data) for each in ("sdpa", form))
    for name, one, other in zip("y dq dk dv".split(), found, fused, strict=True):
        assert error(one, other) < 4 * eps, name


@pytest.mark.parametrize("form", OTHERS)
@pytest.mark.parametrize("case", [square(29), square(29, mask="window")], ids=str)
def test_nothing_sees_what_follows(run: Callable[..., Any], case: Case, form: str) -> None:
    q, k, v, dy = arrays(case)
    before = run(case, form, "float32", [q, k, v, dy])[0]
    for t in (1, 8, 9, 28):
        k_, v_ = k.copy(), v.copy()
        k_[:, :, t:] += 1e3
        v_[:, :, t:] -= 1e3
        after = run(case, form, "float32", [q, k_, v_, dy])[0]
        np.testing.assert_array_equal(before[:, :, :t], after[:, :, :t])
        assert np.any(before[:, :, t] != after[:, :, t])


def test_float64_stays_float64() -> None:
    case = square(29)
    data = arrays(case)
    for form in OTHERS:
        for found, truth in zip(on_torch(case, form, "float64", data), formula(case, *data),
                                strict=True):
            assert error(found, truth) < 1e-14


@pytest.mark.parametrize("arch", ["gpt-sinks", "gpt-qwen3", "mla-deepseek", "moe"])
@pytest.mark.parametrize("form", OTHERS)
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_a_model_is_the_same_in_each_form(backend: Backend, arch: str, form: str, recompute: bool,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{backend.name}_models.attention.CHUNK", CHUNK)
    spec = spec_of(arch) if arch in FORMS else spec_type(arch).preset("tiny", block_size=64)
    weights, data = init_weights(spec), tokens()
    fused = backend.build(spec, weights)
    other = backend.build(spec, weights, recompute=recompute, attention=form)  # type: ignore
    assert close(backend.logits(other, data), logits(backend, spec, weights))
    (_, grads), (_, others) = (backend.loss_and_grads(model, Batch(data, data))
                               for model in (fused, other))
    for name in grads:
        assert close(others[name], grads[name], 256), name
    decoder = backend.decoder(other, 2)
    found = [decoder.prefill(piece) for piece in np.split(data, [1, 12, 13, 30], axis=1)]
    assert close(np.concatenate(found, 1), backend.logits(fused, data), 200)


def test_what_has_no_softmax_has_no_choice(backend: Backend) -> None:
    spec = spec_type("bdh").preset("tiny")
    with pytest.raises(UserError, match="bdh has no softmax attention: leave --attention out"):
        backend.build(spec, init_weights(spec), attention="chunked")
