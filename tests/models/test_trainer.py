"""The optimizers and the training step of both panels, against numpy in float64."""

from __future__ import annotations

import os

import numpy as np
import pytest

from specs import architectures, init_weights, spec_type
from specs.backend import Arrays, Backend, Batch, OptimizerSettings, load_backend
from specs.base import Spec
from specs.errors import UserError
from train.batches import split

FIELDS = {"bdh": {"share_layers": False, "score_scale": "sqrt"},
          "moe": {"aux_loss_coef": 0.0, "tie_embeddings": False}}
SPECS = {arch: spec_type(arch).preset("tiny", dropout=0.1,
                                      **FIELDS.get(arch, {"tie_embeddings": False}))
         for arch in architectures()}
OPTIMIZERS = ["adamw", "muon"]


@pytest.fixture(params=architectures())
def spec(request: pytest.FixtureRequest) -> Spec:
    return SPECS[request.param]


def head(spec: Spec) -> str:
    return next(param.name for param in spec.params() if param.group == "head")


def batch(seed: int, rows: int = 4, T: int = 9) -> Batch:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 64, (rows, T + 1)).astype(np.int32)
    return Batch(data[:, :-1], data[:, 1:], np.arange(seed, seed + rows, dtype=np.int32))


def orthogonalise(U: np.ndarray) -> np.ndarray:
    X = U / (np.linalg.norm(U) + 1e-7)
    X = X.T if U.shape[0] > U.shape[1] else X
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X - 4.7750 * A @ X + 2.0315 * A @ A @ X
    return X.T if U.shape[0] > U.shape[1] else X


def reference(spec: Spec, weights: Arrays, state: Arrays, grads: Arrays, lr: float,
              settings: OptimizerSettings) -> Arrays:
    """docs/optimizers.md, one matrix at a time, in float64. Updates `state`; the new weights."""
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    clip = min(1.0, settings.grad_clip / (norm + 1e-6)) if settings.grad_clip else 1.0
    step = state["step"] = state.get("step", 0) + 1
    new = {}
    for param in spec.params():
        name, W, G = param.name, weights[param.name], grads[param.name] * clip
        decay = settings.weight_decay if param.decays else 0.0
        if settings.optimizer == "muon" and param.group == "hidden":
            M = state[f"momentum.{name}"] = 0.95 * state.get(f"momentum.{name}", 0) + 0.05 * G
            U = (0.05 * G + 0.95 * M).reshape(param.stack)
            X = np.stack([orthogonalise(u) for u in U]).reshape(W.shape)
            rows, columns = param.stack[1:]
            new[name] = W * (1 - lr * decay) - lr * max(1, rows / columns) ** 0.5 * X
            continue
        rate = lr * param.lr_scale * (settings.adam_lr_scale if settings.optimizer == "muon" else 1)
        m = state[f"m.{name}"] = 0.9 * state.get(f"m.{name}", 0) + 0.1 * G
        v = state[f"v.{name}"] = 0.95 * state.get(f"v.{name}", 0) + 0.05 * G**2
        ratio = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        new[name] = W * (1 - rate * decay) - rate * ratio
    return new


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("grad_clip", [0.0, 0.5])
def test_updates_follow_the_definition(backend: Backend, spec: Spec, optimizer: str,
                                       grad_clip: float) -> None:
    settings = OptimizerSettings(optimizer=optimizer, grad_clip=grad_clip)  # type: ignore[arg-type]
    model = backend.build(spec, init_weights(spec))
    trainer = backend.trainer(model, settings)
    state: Arrays = {}
    for step in range(3):
        before = {k: w.astype(np.float64) for k, w in backend.weights(model).items()}
        # Of one row: several may be summed in another order, and Adam begins with a sign.
        _, grads = backend.loss_and_grads(model, batch(step, rows=1))
        wanted = reference(spec, before, state, {k: g.astype(np.float64) for k, g in grads.items()},
                           0.02, settings)
        trainer.step([batch(step, rows=1)], 0.02)
        for name, weight in backend.weights(model).items():
            moved = np.linalg.norm(wanted[name] - before[name])
            stored = 2**-24 * np.linalg.norm(weight)  # rounding of a weight to float32
            assert np.linalg.norm(weight - wanted[name]) <= 2e-5 * moved + stored, (step, name)
    own = trainer.state()
    assert own.keys() == state.keys()
    for name, value in state.items():
        assert np.linalg.norm(own[name] - value) <= 1e-5 * np.linalg.norm(value), name


@pytest.mark.needs("mlx")
def test_rows_side_by_side_are_rows_one_after_the_other(spec: Spec) -> None:
    backend, cores = load_backend("mlx", "cpu"), os.cpu_count() or 1
    ends = []
    for size in (1, cores):
        model = backend.build(spec, init_weights(spec))
        trainer = backend.trainer(model, OptimizerSettings())
        trainer.step(split(batch(0, rows=cores), size), 0.02)
        ends.append((trainer.read(), backend.weights(model)))
    (one, weights), (other, same) = ends
    assert one.losses == other.losses
    assert all(np.array_equal(weights[name], same[name]) for name in weights)


def test_muon_orthogonalises_each_matrix_of_a_stack() -> None:
    spec = SPECS["bdh"]
    stacks = {param.name: param.stack for param in spec.params() if param.group == "hidden"}
    L, H, C, N = spec.n_layer, spec.n_head, spec.n_embd, spec.d_state
    assert stacks == {"encoder": (L * H, C, N), "encoder_v": (L * H, C, N),
                      "decoder": (L * H, N, C)}


@pytest.mark.parametrize("pieces", [[1, 1, 1, 1], [3, 1], [2, 2]], ids=str)
def test_micro_batches_give_the_same_update(backend: Backend, spec: Spec,
                                            pieces: list[int]) -> None:
    whole, split, rows = batch(5), [], 0
    for piece in pieces:
        part = slice(rows, rows + piece)
        split.append(Batch(whole.tokens[part], whole.targets[part], whole.keys[part]))
        rows += piece
    results = []
    for batches in ([whole], split):
        model = backend.build(spec, init_weights(spec))
        trainer = backend.trainer(model, OptimizerSettings())
        trainer.step(batches, 0.01)
        results.append((trainer.read(), backend.weights(model)))
    (progress, weights), (progress_split, weights_split) = results
    assert progress.losses == pytest.approx(progress_split.losses, rel=1e-6)
    assert progress.grad_norms == pytest.approx(progress_split.grad_norms, rel=1e-5)
    for name in weights:
        assert np.abs(weights[name] - weights_split[name]).mean() < 1e-6


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_nothing(backend: Backend, spec: Spec,
                                                   optimizer: str) -> None:
    weights = init_weights(spec)
    model = backend.build(spec, weights)
    trainer = backend.trainer(model, OptimizerSettings(optimizer=optimizer))  # type: ignore
    trainer.step([batch(0)], 0.01)
    before, state = backend.weights(model), trainer.state()
    name, spoilt = head(spec), before[head(spec)].copy()
    spoilt[spoilt > 0.05] = np.nan
    broken = {**before, name: spoilt}
    poisoned_model = backend.build(spec, broken)
    poisoned = backend.trainer(poisoned_model, OptimizerSettings(optimizer=optimizer))  # type: ignore
    poisoned.load_state(state)
    poisoned.step([batch(1)], 0.01)
    progress = poisoned.read()
    assert progress.finite == [False]
    for name, weight in backend.weights(poisoned_model).items():
        np.testing.assert_array_equal(weight, broken[name])
    for name, value in poisoned.state().items():
        np.testing.assert_array_equal(value, state[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_state_goes_out_and_in(backend: Backend, spec: Spec, optimizer: str, dtype: str) -> None:
    """Two steps, a new trainer from the state, one more: bit for bit as three in a row."""
    settings = OptimizerSettings(optimizer=optimizer)  # type: ignore[arg-type]
    model = backend.build(spec, init_weights(spec), dtype)  # type: ignore[arg-type]
    trainer = backend.trainer(model, settings)
    trainer.step([batch(0)], 0.01)
    trainer.step([batch(1)], 0.01)
    copy = backend.build(spec, backend.weights(model), dtype)  # type: ignore[arg-type]
    resumed = backend.trainer(copy, settings)
    resumed.load_state(trainer.state())
    for each in (trainer, resumed):
        each.step([batch(2)], 0.01)
    for name, weight in backend.weights(model).items():
        np.testing.assert_array_equal(weight, backend.weights(copy)[name])
    state = trainer.state()
    assert ("loss_scale" in state) == (dtype == "float16")
    for name, value in resumed.state().items():
        np.testing.assert_array_equal(value, state[name])


def test_float16_halves_its_loss_scale_until_the_step_is_finite(backend: Backend,
                                                                spec: Spec) -> None:
    """Gradients a thousand times too large for float16 at the first scale."""
    weights = init_weights(spec)
    weights[head(spec)] = weights[head(spec)] * 200
    model = backend.build(spec, weights, "float16")
    trainer = backend.trainer(model, OptimizerSettings())
    for step in range(12):
        trainer.step([batch(step)], 1e-4)
    progress = trainer.read()
    skipped = progress.finite.count(False)
    assert 0 < skipped < 12 and progress.finite[-1]
    assert progress.loss_scale == 2.0 ** (16 - skipped)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns(backend: Backend, spec: Spec, dtype: str) -> None:
    spec = spec.replace(dropout=0.0)
    model = backend.build(spec, init_weights(spec), dtype)  # type: ignore[arg-type]
    trainer = backend.trainer(model, OptimizerSettings())
    for _ in range(12):
        trainer.step([batch(0)], 0.01)
    progress = trainer.read()
    losses = [loss for loss, ok in zip(progress.losses, progress.finite, strict=True) if ok]
    assert losses[-1] < losses[0] - 1


@pytest.mark.xdist_group("compile")  # one process, which loads the compiler once
@pytest.mark.usefixtures("compiling")
@pytest.mark.filterwarnings("ignore")  # the compilers' own
def test_compiled_steps_are_the_same_steps(backend: Backend, spec: Spec,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    spec, ends = spec.replace(n_layer=1), []
    for compile in (False, True):
        model = backend.build(spec, init_weights(spec))
        trainer = backend.trainer(model, OptimizerSettings(), compile)
        for seed in range(3):
            trainer.step(split(batch(seed), 2), 0.01)
        ends.append(trainer.read().losses)
    if "going on without --compile" in capsys.readouterr().err:
        pytest.skip("no C++ compiler here")
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


def test_state_of_another_optimizer_is_refused(backend: Backend, spec: Spec) -> None:
    model = backend.build(spec, init_weights(spec))
    muon = backend.trainer(model, OptimizerSettings(optimizer="muon"))
    with pytest.raises(UserError, match="optimizer state does not fit"):
        backend.trainer(model, OptimizerSettings()).load_state(muon.state())


def test_a_model_that_has_decoded_can_be_trained(backend: Backend, spec: Spec) -> None:
    losses = []
    for decode_first in (True, False):
        model = backend.build(spec, init_weights(spec))
        if decode_first:
            backend.decoder(model).prefill(batch(0).tokens)
        trainer = backend.trainer(model, OptimizerSettings())
        trainer.step([batch(1)], 1e-2)
        losses += trainer.read().losses
    assert losses[0] == losses[1]


def test_evaluation_counts(backend: Backend, spec: Spec) -> None:
    model = backend.build(spec, init_weights(spec))
    data = batch(3)
    logits = backend.logits(model, data.tokens).astype(np.float64)
    nats, right = backend.trainer(model, OptimizerSettings()).evaluate(data.tokens, data.targets)
    chosen = np.take_along_axis(logits, data.targets[..., None], -1)[..., 0]
    assert nats == pytest.approx((np.log(np.exp(logits).sum(-1)) - chosen).sum(), rel=1e-6)
    assert right == (logits.argmax(-1) == data.targets).sum()


def test_targets_of_minus_one_count_for_nothing(backend: Backend, spec: Spec) -> None:
    """Neither in the loss, its gradient and a step, nor in an evaluation."""
    model = backend.build(spec, init_weights(spec))
    data = batch(3)
    seen = np.random.default_rng(0).random(data.targets.shape) < 0.3
    masked = Batch(data.tokens, np.where(seen, data.targets, -1).astype(np.int32))
    logits = backend.logits(model, data.tokens).astype(np.float64)
    chosen = np.take_along_axis(logits, data.targets[..., None], -1)[..., 0]
    nats = (np.log(np.exp(logits).sum(-1)) - chosen)[seen]
    assert masked.counted == seen.sum() == nats.size
    loss, _ = backend.loss_and_grads(model, masked)
    assert loss == pytest.approx(nats.mean(), rel=1e-6)
    trainer = backend.trainer(model, OptimizerSettings())
    assert trainer.evaluate(masked.tokens, masked.targets) == (
        pytest.approx(nats.sum(), rel=1e-6), (logits.argmax(-1) == data.targets)[seen].sum())
    trainer.step([masked], 1e-3)
    assert trainer.read().losses == [pytest.approx(nats.mean(), rel=1e-6)]
    unseen = Batch(data.tokens, np.where(seen, -1, data.targets).astype(np.int32))
    whole, one, other = (backend.loss_and_grads(model, each)[1]
                         for each in (Batch(data.tokens, data.targets), masked, unseen))
    for name, grad in whole.items():
        parts = one[name] * masked.counted + other[name] * unseen.counted
        np.testing.assert_allclose(parts / seen.size, grad, rtol=1e-4,
                                   atol=1e-6 * np.abs(grad).max())
