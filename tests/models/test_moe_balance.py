"""What training does for the balance of moe's experts: penalties, biases, noise, loads."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from specs import init_weights
from specs.backend import Arrays, Backend, Batch, Dtype, OptimizerSettings, load_backend
from specs.base import Spec
from tests.models.forms import close, spec_of, tokens, weights_of
from tests.models.test_moe import batch_of, each_form


def training_pass(backend: Backend, spec: Spec, weights: Arrays, batch: Batch) -> Any:
    """(logits, what joins the summed cross-entropy, loads), as the trainer takes them."""
    loss, trainer = (importlib.import_module(f"{backend.name}_models.{name}")
                     for name in ("loss", "trainer"))
    data = trainer.arrays(batch) if backend.name == "mlx" else trainer.tensors(batch, "cpu")
    return loss.training_pass(backend.build(spec, weights), data[0], None)


@each_form
def test_choices_and_penalties(form: str, backend: Backend) -> None:
    """Against numpy, from what the routers said."""
    spec = spec_of(form, aux_loss_coef=0.3, z_loss_coef=0.2, router_noise=0.0, dropout=0.0)
    weights, batch = weights_of(spec), batch_of(spec, 3, 20)
    model = backend.build(spec, weights)
    E, k, wanted, loads = spec.n_experts, spec.n_experts_per_tok, 0.0, []
    for call in backend.trace(model, batch):
        if call.path.endswith("router"):
            scores = call.output.astype(np.float64)
            p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            bias = weights.get(call.path.replace("router", "balance_bias"), 0)
            chosen = np.argsort(-(p + bias), -1)[..., :k]
            mine = (chosen[..., None] == np.arange(E)).sum(-2)
            loads.append(mine.sum((0, 1)))
            for row in range(3):
                share = mine[row].sum(0) / (20 * k)
                wanted += 20 * 0.3 * E * (share * p[row].mean(0)).sum()
                wanted += 20 * 0.2 * (np.log(np.exp(scores[row]).sum(-1)) ** 2).mean()
        if call.path.endswith("experts"):
            np.testing.assert_array_equal(call.inputs[1], np.sort(chosen, -1))
            shares = np.take_along_axis(p, np.sort(chosen, -1), -1)
            if spec.norm_topk_prob:
                shares = shares / shares.sum(-1, keepdims=True)
            np.testing.assert_allclose(call.inputs[2], shares, rtol=1e-5)
    x, added, load = training_pass(backend, spec, weights, batch)
    assert added.item() == pytest.approx(wanted, rel=1e-5)
    assert [each.tolist() for each in load] == [each.tolist() for each in loads]
    assert close(np.array(model.head(x).tolist(), np.float32), backend.logits(model, batch.tokens))


def test_a_uniform_router_has_a_balance_loss_of_one(backend: Backend) -> None:
    spec = spec_of("moe-mixtral", aux_loss_coef=1.0)
    weights = {name: 0 * w if "router" in name else w for name, w in init_weights(spec).items()}
    batch = batch_of(spec)
    _, added, _ = training_pass(backend, spec, weights, batch)
    assert added.item() == pytest.approx(spec.n_layer * batch.tokens.size, rel=1e-6)


def train(backend: Backend, spec: Spec, batches: list[Batch], lr: float = 0.01,
          recompute: bool = False, dtype: Dtype = "float32") -> tuple[Any, Arrays]:
    model = backend.build(spec, weights_of(spec), dtype, recompute)
    trainer = backend.trainer(model, OptimizerSettings())
    trainer.step(batches, lr)
    return trainer.read(), backend.weights(model)


@each_form
def test_micro_batches_and_recompute_change_nothing(backend: Backend, form: str) -> None:
    """The penalties are those of each row; loads are counted over the whole update."""
    spec = spec_of(form, aux_loss_coef=1.0, z_loss_coef=0.1, dropout=0.1)
    whole = batch_of(spec, 4, 12)
    assert whole.keys is not None
    rows = [Batch(whole.tokens[i:j], whole.targets[i:j], whole.keys[i:j])
            for i, j in ((0, 3), (3, 4))]
    progress, weights = train(backend, spec, [whole])
    for batches, recompute in ((rows, False), ([whole], True)):
        other, others = train(backend, spec, batches, recompute=recompute)
        assert other.losses == pytest.approx(progress.losses, rel=1e-6)
        assert other.grad_norms == pytest.approx(progress.grad_norms, rel=1e-5)
        np.testing.assert_array_equal(other.load, progress.load)
        for name, weight in weights.items():
            assert np.abs(weight - others[name]).mean() < 1e-6, name


def test_training_adds_the_penalties_and_reports_cross_entropy(backend: Backend) -> None:
    spec = spec_of("moe-mixtral")
    batch = batch_of(spec)
    loss, grads = backend.loss_and_grads(backend.build(spec, weights_of(spec)), batch)
    norm = np.sqrt(sum(np.linalg.norm(grad) ** 2 for grad in grads.values()))
    norms = {}
    for coef in (0.0, 1.0):
        progress, _ = train(backend, spec.replace(aux_loss_coef=coef), [batch])
        assert progress.losses == pytest.approx([loss], rel=1e-6)
        assert progress.load is not None and progress.load.shape == (2, 4)
        assert progress.load.sum(1).tolist() == [160, 160]
        norms[coef] = progress.grad_norms[0]
    assert norms[0.0] == pytest.approx(norm, rel=1e-5) and norms[1.0] > 1.01 * norm


def test_the_bias_moves_towards_equal_load(backend: Backend) -> None:
    spec = spec_of("moe-shared", n_layer=1)
    before = weights_of(spec)["layers.0.mlp.balance_bias"]
    progress, weights = train(backend, spec, [batch_of(spec)])
    load = progress.load[0]
    step = weights["layers.0.mlp.balance_bias"] - before
    assert load.min() < load.mean() < load.max()
    np.testing.assert_allclose(step, 1e-3 * np.sign(load.mean() - load), atol=1e-8)
    _, still = train(backend, spec, [batch_of(spec)], lr=0.0)
    np.testing.assert_array_equal(still["layers.0.mlp.balance_bias"], before)


def test_the_bias_balances(backend: Backend) -> None:
    """With a router that never learns."""
    spec = spec_of("moe-shared", n_layer=1, router_noise=0.0)
    model = backend.build(spec, {**weights_of(spec), "layers.0.mlp.balance_bias": np.zeros(
        9, np.float32)})
    trainer, batch, spread = backend.trainer(model, OptimizerSettings()), batch_of(spec), []
    for _ in range(60):
        trainer.step([batch], 1e-9)
        spread.append(np.ptp(trainer.read().load))
    assert np.mean(spread[-5:]) < 0.7 * spread[0]


def test_a_step_that_is_not_finite_moves_no_bias(backend: Backend) -> None:
    spec = spec_of("moe-shared", n_layer=1)
    weights = weights_of(spec)
    weights["layers.0.mlp.shared.up_proj.weight"][0] = np.nan
    model = backend.build(spec, weights)
    trainer = backend.trainer(model, OptimizerSettings())
    trainer.step([batch_of(spec)], 0.01)
    assert trainer.read().finite == [False]
    name = "layers.0.mlp.balance_bias"
    np.testing.assert_array_equal(backend.weights(model)[name], weights[name])


def test_both_panels_draw_the_same() -> None:
    """Dropout and router noise, by the rows' keys."""
    spec, losses = spec_of("moe-shared", dropout=0.2, router_noise=0.5), set()
    for keys in ([1, 2], [1, 3], None):
        batch = Batch(tokens(), tokens(), keys and np.array(keys, np.int32))
        one, two = (backend.loss_and_grads(backend.build(spec, weights_of(spec)), batch)[0]
                    for backend in map(load_backend, ("mlx", "torch")))
        assert one == pytest.approx(two, rel=1e-6)
        losses.add(round(one, 5))
    assert len(losses) == 3


def test_noise_is_nearly_normal(backend: Backend) -> None:
    layers = importlib.import_module(f"{backend.name}_models.layers")
    array = layers.mx.array if backend.name == "mlx" else layers.torch.tensor
    like, keys = np.zeros((3, 400, 50), np.float32), np.array([5, 6, 5], np.int32)
    drawn = np.array(layers.noise(array(like), array(keys)).tolist(), np.float32)
    assert drawn.shape == like.shape
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 0.02
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02
    assert abs(np.mean(np.abs(drawn) < 1) - 0.68) < 0.02
