"""retnet on both panels: its three forms are one function, its state is what the paper says."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import specs.retnet
from specs import init_weights, spec_type
from specs.backend import Arrays, Backend, Batch, Dtype
from specs.base import Spec
from tests.models.forms import (
    FORMS,
    assert_nothing_later_is_seen,
    close,
    spec_of,
    tokens,
    weights_of,
)

RETNET: Any = spec_type("retnet")
CHUNK = 7
LENGTHS = [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 4]
H, DK, DV = 3, 4, 6
PANELS = ["mlx", "torch"]
each_panel = pytest.mark.parametrize("panel", PANELS)
each_form = pytest.mark.parametrize("form", [form for form in FORMS if "retnet" in form])


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that 60 tokens are several, and some of the next."""
    monkeypatch.setattr(specs.retnet, "CHUNK", CHUNK)


@pytest.mark.parametrize("preset, count", [
    ("demo", 467_808), ("10m", 10_720_128), ("50m", 47_937_600), ("1.3b", 1_310_887_936)])
def test_parameter_count(preset: str, count: int) -> None:
    assert RETNET.preset(preset).param_count() == count


def test_initial_weights_are_as_published() -> None:
    spec = RETNET(n_embd=96, n_layer=1, tie_embeddings=False, v_dim_multiplier=3)
    weights = init_weights(spec)
    square, wide, gain = (6 / 192) ** 0.5, (6 / 384) ** 0.5, 2**-2.5
    bounds = {"mixer.q_proj": gain * square, "mixer.k_proj": gain * square,
              "mixer.v_proj": gain * wide, "mixer.g_proj": gain * wide, "mixer.o_proj": 0.5 * wide,
              "mlp.gate_proj": 96**-0.5, "mlp.up_proj": 96**-0.5, "mlp.down_proj": 128**-0.5}
    for name, bound in bounds.items():
        w = weights[f"layers.0.{name}.weight"]
        assert 0.995 * bound < np.abs(w).max() <= bound * (1 + 2**-22), name
        assert w.std() == pytest.approx(bound / 3**0.5, rel=0.02), name
    for name in ("embed.weight", "lm_head.weight"):
        assert weights[name].std() == pytest.approx(96**-0.5, rel=0.02)


def inputs(T: int, state: bool) -> Arrays:
    """What goes into a form, and the weights of a sum of all that comes out."""
    rng = np.random.default_rng(T)
    shapes = {"q": (2, H, T, DK), "k": (2, H, T, DK), "v": (2, H, T, DV), "state": (2, H, DK, DV),
              "on output": (2, H, T, DV), "on state": (2, H, DK, DV)}
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return drawn if state else {**drawn, "state": 0 * drawn["state"]}


def exact(given: Arrays) -> Arrays:
    """Output, last state and the gradient of the weighted sum, from the definition in float64."""
    q, k, v, S, do, dS = (a.astype(np.float64) for a in given.values())
    T, gamma = q.shape[2], (1 - 2.0 ** -np.arange(5, 5 + H))[:, None, None]
    t = np.arange(T)
    D = np.tril(gamma ** np.abs(t[:, None] - t))
    read, write, all_ = gamma ** (t[:, None] + 1), gamma ** (T - 1 - t)[:, None], gamma**T

    def turned(a: np.ndarray) -> np.ndarray:
        return a.swapaxes(-1, -2)

    scores, pull = D * (q @ turned(k)), D * (do @ turned(v))
    return {"output": scores @ v + read * (q @ S),
            "last state": turned(write * k) @ v + all_ * S,
            "q": pull @ k + read * (do @ turned(S)),
            "k": turned(pull) @ q + write * (v @ turned(dS)),
            "v": turned(scores) @ do + write * (k @ dS),
            "state": turned(read * q) @ do + all_ * dS}


def computed(panel: str, form: str, given: Arrays, dtype: Dtype, state: bool) -> Arrays:
    """The same from a form of the panel, in float32."""
    module = importlib.import_module(f"{panel}_models.retnet")
    made = module.Retention(RETNET(n_head=H, n_embd=H * DK))
    spec, T = RETNET(n_head=H, n_embd=2 * H * DK), given["q"].shape[2]
    Q = T if form == "parallel" else min(CHUNK, T)
    tables = [table.astype(np.float32) for table in (spec.decay(Q), spec.decay(T // Q, Q))]

    def outputs(q: Any, k: Any, v: Any, S: Any, within: Any, between: Any) -> tuple[Any, Any]:
        if form == "parallel":
            return made.parallel(q, k, v, within), 0 * S
        args = (q, k, v, within, *([between] if form == "chunkwise" else []))
        return getattr(made, form)(*args, S if state else None)

    run = mlx_gradients if panel == "mlx" else torch_gradients
    return run(outputs, list(given.values()), tables, dtype)


def mlx_gradients(outputs: Any, given: list[np.ndarray], tables: list[np.ndarray],
                  dtype: Dtype) -> Arrays:
    import mlx.core as mx

    within, between = map(mx.array, tables)
    *leaves, state, do, dS = map(mx.array, given)
    leaves = [leaf.astype(getattr(mx, dtype)) for leaf in leaves]

    def weighted(*leaves: Any) -> Any:
        o, S = outputs(*leaves, within, between)
        return (o * do).sum() + (S * dS).sum(), (o, S)

    (_, found), grads = mx.value_and_grad(weighted, argnums=range(4))(*leaves, state)
    return named([np.array(a.astype(mx.float32)) for a in (*found, *grads)])


def torch_gradients(outputs: Any, given: list[np.ndarray], tables: list[np.ndarray],
                    dtype: Dtype) -> Arrays:
    import torch

    within, between = map(torch.tensor, tables)
    *leaves, state, do, dS = map(torch.tensor, given)
    leaves = [leaf.to(getattr(torch, dtype)).requires_grad_() for leaf in leaves]
    o, S = outputs(*leaves, state.requires_grad_(), within, between)
    grads = torch.autograd.grad((o * do).sum() + (S * dS).sum(), [*leaves, state],
                                materialize_grads=True)
    return named([a.float().numpy(force=True) for a in (o, S, *grads)])


def named(arrays: list[np.ndarray]) -> Arrays:
    return dict(zip(("output", "last state", "q", "k", "v", "state"), arrays, strict=True))


@each_panel
@pytest.mark.parametrize("dtype, eps", [("float32", 2**-24), ("bfloat16", 2**-8)])
@pytest.mark.parametrize("T", LENGTHS, ids=lambda T: f"T{T}")
@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent", "chunkwise behind a state",
                                  "recurrent behind a state"])
def test_forms_are_the_definition(panel: str, form: str, T: int, dtype: Dtype, eps: float) -> None:
    """Outputs, last state, and all gradients."""
    state = form.endswith("state")
    given = inputs(T, state)
    found, wanted = computed(panel, form.split()[0], given, dtype, state), exact(given)
    for name, value in wanted.items():
        if (name in ("last state", "state") and form == "parallel") or (
                name == "state" and not state):
            continue
        if form == "parallel" and name in ("k", "v"):  # there is no last state to come from
            value = exact({**given, "on state": 0 * given["on state"]})[name]
        assert np.linalg.norm(found[name] - value) <= 16 * eps * np.linalg.norm(value), name


@pytest.mark.usefixtures("short_chunks")
@each_form
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_later_token_changes_an_earlier_logit(backend: Backend, form: str,
                                                 dtype: Dtype) -> None:
    spec = spec_of(form)
    assert spec.chunk(60) == CHUNK  # type: ignore[attr-defined]
    assert_nothing_later_is_seen(backend, spec, dtype, tokens(2, 60),
                                 (1, CHUNK - 1, CHUNK, 5 * CHUNK, 59))


@each_form
@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "recompute"])
def test_training_by_chunks_is_training_in_parallel(backend: Backend, form: str, recompute: bool,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    spec, data = spec_of(form, dropout=0.2), tokens(3, 60)
    batch = Batch(data, data, np.array([3, -8, 99], np.int32))
    (loss, grads), (chunked, chunked_grads) = (
        (monkeypatch.setattr(specs.retnet, "CHUNK", chunk), backend.loss_and_grads(
            backend.build(spec, weights_of(spec), recompute=recompute), batch))[1]
        for chunk in (64, CHUNK))
    assert chunked == pytest.approx(loss, rel=1e-6)
    assert any(np.any(chunked_grads[name] != grad) for name, grad in grads.items())
    whole = np.sqrt(sum(np.linalg.norm(grad) ** 2 for grad in grads.values()))
    for name, grad in grads.items():
        assert np.linalg.norm(chunked_grads[name] - grad) <= 16 * 2**-24 * whole, name


@pytest.mark.usefixtures("short_chunks")
@each_form
@pytest.mark.parametrize("pieces", [[60], [7, 1, 1, 40, 11], [5, 6, 7, 42]], ids=str)
def test_decoding_in_pieces_of_chunks(backend: Backend, form: str, pieces: list[int]) -> None:
    spec = spec_of(form)
    model, data = backend.build(spec, weights_of(spec)), tokens(3, 60)
    decoder = backend.decoder(model, 3)
    found = [decoder.prefill(piece) for piece in np.split(data, np.cumsum(pieces)[:-1], axis=1)]
    assert close(np.concatenate(found, 1), backend.logits(model, data), 200)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_state_is_in_float32_and_carries_the_scale_of_k(backend: Backend, dtype: Dtype) -> None:
    """At position 0 nothing is turned: S = kᵀv/√dk."""
    spec: Any = spec_of("retnet-torchscale")
    model, data = backend.build(spec, weights_of(spec), dtype), tokens(2, 1)
    decoder: Any = backend.decoder(model, 2)
    k, v = (next(call.output for call in decoder.trace(data) if call.path.endswith(name))
            for name in ("0.mixer.k_proj", "0.mixer.v_proj"))
    k, v = (a.reshape(2, spec.n_head, -1) for a in (k, v))
    decoder = backend.decoder(model, 2)
    decoder.prefill(data)
    state = decoder.cache[0].get("state")
    assert str(state.dtype).endswith("float32")
    wanted = k[..., None] * v[..., None, :] / spec.key_size**0.5
    assert close(np.asarray(state), wanted, 4 if dtype == "float32" else 2**16)


@each_form
def test_small_keys_change_nothing(backend: Backend, form: str) -> None:
    """The head norm cancels them: all but its eps, which must be far below."""
    spec, data = spec_of(form), tokens()
    weights = weights_of(spec)
    small = {name: w * np.float32(2**-17 if "k_proj" in name else 1)
             for name, w in weights.items()}
    one, other = (backend.logits(backend.build(spec, w), data) for w in (weights, small))
    assert close(other, one, 4)


def test_the_first_score_has_no_gradient(backend: Backend) -> None:
    """It would be rounding, over a score as small as it likes; in bfloat16 larger than others."""
    spec, data = spec_of("retnet-paper"), tokens(3, 1)
    _, grads = backend.loss_and_grads(backend.build(spec, weights_of(spec)), Batch(data, data))
    whole = np.sqrt(sum(np.linalg.norm(grad) ** 2 for grad in grads.values()))
    for name, grad in grads.items():
        if "q_proj" in name:
            assert not grad.any(), name
        elif "k_proj" in name:
            assert np.linalg.norm(grad) < 8 * 2**-24 * whole, name


def test_decays_and_angles_are_those_of_the_paper() -> None:
    spec = RETNET(n_embd=64, n_head=8)
    decay, angle = spec.decay(100, 3), spec.rotary(5000, 3)
    assert decay.dtype == angle.dtype == np.float64
    for h, i, j in [(0, 1, 0), (7, 100, 0), (3, 50, 49), (5, 4, 4)]:
        assert decay[h, i, j] == pytest.approx((1 - 2.0 ** (-5 - h)) ** (3 * (i - j)), rel=1e-14)
    assert not decay[:, 2, 3].any()
    assert angle.shape == (3, 4) and angle[1, 0] == 5001
    np.testing.assert_allclose(angle[1] / 5001, 10.0 ** (-4 * np.arange(4) / 3), rtol=1e-14)
    assert RETNET(n_embd=8, n_head=4).rotary(0, 3).tolist() == [[0], [1], [2]]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 1500))
def test_the_cheaper_form_is_taken(half: int, multiplier: int, T: int) -> None:
    """Against a count of the multiplications of both, a chunk of all its tokens."""
    spec = RETNET(n_embd=2 * half * 4, v_dim_multiplier=multiplier)
    dk, dv, Q = spec.key_size, spec.value_size, specs.retnet.CHUNK
    parallel = T * T * (dk + dv)
    chunks = T * Q * (dk + dv) + 2 * T * dk * dv
    assert spec.chunk(T) == (T if parallel <= chunks else Q)


@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 400))
def test_flops_are_counted(half: int, multiplier: int, T: int) -> None:
    """Against a plain count of every product of a forward pass, one by one."""
    C, F = 2 * half * 2, 17
    spec = RETNET(n_embd=C, n_head=2, v_dim_multiplier=multiplier, d_ff=F, n_layer=3, vocab_size=11)
    dk, dv, Q, layer = C // 2, multiplier * C // 2, spec.chunk(T), 0.0
    for t in range(T):
        layer += 2 * C * (2 * C + 2 * 2 * dv) + 2 * 2 * dv * C + 3 * 2 * C * F
        layer += 2 * (t % Q + 1) * (2 * dk + 2 * dv)  # this token and those before it in its chunk
        layer += 2 * 2 * dk * dv * (t >= Q)  # reads what stands for the chunks before its own
        layer += 2 * 2 * dk * dv * (t < (T - 1) // Q * Q)  # another chunk will read it
    assert spec.flops_per_token(T) * T == pytest.approx(3 * layer + T * 2 * C * 11)


@pytest.mark.parametrize("tied", [True, False])
def test_decoding_traffic_is_counted(tied: bool) -> None:
    """All weights but the rows of an untied embedding; the states are read and written."""
    spec: Spec = RETNET.preset("tiny", tie_embeddings=tied)
    state, unread = 4 * 2 * 4 * 8 * 16, 0 if tied else 4 * 64 * 32
    assert spec.decode_state_bytes(1) == spec.decode_state_bytes(10**6) == state
    assert spec.decode_traffic(30) == 4 * spec.param_count() - unread + 2 * state
