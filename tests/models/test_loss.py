"""Of a large vocabulary the loss and its gradient are taken by pieces, and are the same."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import numpy as np
import pytest

from specs import architectures, init_weights, spec_type
from specs.backend import Arrays, Backend, Batch, OptimizerSettings, Progress
from specs.base import Spec


@pytest.fixture(params=architectures())
def spec(request: pytest.FixtureRequest) -> Spec:
    return spec_type(request.param).preset("tiny", dropout=0.1)


@pytest.fixture(params=[1, 7, 40], ids=lambda tokens: f"{tokens}-at-once")
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, backend: Backend,
           ) -> Iterator[None]:
    """Logits are made for 1, 7 or 40 tokens at once: of one row, of parts, of more than one."""
    loss = importlib.import_module(f"{backend.name}_models.loss")
    monkeypatch.setattr(loss, "PIECE", 64 * request.param)


def batch_of(spec: Spec) -> Batch:
    rng = np.random.default_rng(1)
    data = rng.integers(0, spec.vocab_size, (4, 20)).astype(np.int32)
    targets = np.where(rng.random((4, 19)) < 0.2, -1, data[:, 1:]).astype(np.int32)
    return Batch(data[:, :-1], targets, np.arange(4, dtype=np.int32))


def train(backend: Backend, spec: Spec, dtype: str = "float32", compile: bool = False,
          ) -> tuple[Progress, Arrays]:
    model = backend.build(spec, init_weights(spec), dtype)  # type: ignore[arg-type]
    trainer = backend.trainer(model, OptimizerSettings(grad_clip=0.0), compile)
    trainer.step([batch_of(spec)], 1e-3)
    return trainer.read(), backend.weights(model)


@pytest.fixture
def whole(spec: Spec, backend: Backend) -> tuple[Progress, Arrays, tuple[float, int]]:
    """What comes of all logits at once; asked for before `pieces`."""
    batch = batch_of(spec)
    judged = backend.trainer(backend.build(spec, init_weights(spec)), OptimizerSettings()).evaluate(
        batch.tokens, batch.targets)
    return *train(backend, spec), judged


def test_pieces_make_the_same_step(spec: Spec, backend: Backend, whole: tuple[Progress, Arrays],
                                   pieces: None) -> None:
    progress, weights = train(backend, spec)
    assert progress.losses == pytest.approx(whole[0].losses, rel=2e-6)
    assert progress.grad_norms == pytest.approx(whole[0].grad_norms, rel=1e-5)
    for name, weight in weights.items():
        assert np.abs(weight - whole[1][name]).mean() < 2e-6, name


def test_pieces_are_judged_the_same(spec: Spec, backend: Backend,
                                    whole: tuple[Progress, Arrays, tuple[float, int]],
                                    pieces: None) -> None:
    batch, model = batch_of(spec), backend.build(spec, init_weights(spec))
    loss, right = backend.trainer(model, OptimizerSettings()).evaluate(batch.tokens, batch.targets)
    assert loss == pytest.approx(whole[2][0], rel=1e-6) and right == whole[2][1]


@pytest.mark.xdist_group("compile")  # one process, which loads the compiler once
@pytest.mark.usefixtures("compiling")
@pytest.mark.filterwarnings("ignore")  # the compilers' own
@pytest.mark.parametrize("dtype, compile", [("bfloat16", False), ("float16", False),
                                            ("float32", True)],
                         ids=["bfloat16", "float16", "compiled"])
def test_pieces_in_half_precision_and_compiled(dtype: str, compile: bool, backend: Backend,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_type("gpt").preset("tiny")
    whole, _ = train(backend, spec, dtype, compile)
    loss = importlib.import_module(f"{backend.name}_models.loss")
    monkeypatch.setattr(loss, "PIECE", 64 * 7)
    pieces, _ = train(backend, spec, dtype, compile)
    assert pieces.losses == pytest.approx(whole.losses, rel=1e-5)
    assert pieces.grad_norms == pytest.approx(whole.grad_norms, rel=1e-2)
