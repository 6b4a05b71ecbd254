"""train/run.py from end to end: what it writes and what its options do."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from specs import architectures, init_weights, spec_type
from specs.backend import BACKENDS, OptimizerSettings, settings_from
from specs.errors import UserError
from tests.train.running import TINY, call, resume, save, started, train
from train import checkpoint, loop, metrics
from train.options import new_settings, parser
from train.rundir import RunDir

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.usefixtures("pictures")
def test_pictures_that_a_run_leaves() -> None:
    run = train("--steps", "4")
    assert {file.name for file in run.plots.iterdir()} == {
        "loss.png", "validation.png", "throughput.png", "rate.png"}
    assert all(file.stat().st_size > 5000 for file in run.plots.iterdir())


@pytest.mark.parametrize("arch", architectures())
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_run_leaves(backend: str, arch: str) -> None:
    run = train("--steps", "10", "--keep", "1", "--arch", arch, backend=backend)
    names = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    best = checkpoint.best_step(run.path)
    assert {"config.json", "tokenizer.json", "metrics.jsonl",
            "corpus/corpus.safetensors", "step-00000010/model.safetensors",
            "step-00000010/optimizer.safetensors", "step-00000010/state.json"} <= names
    assert run.steps() == sorted({10, best})
    rows = metrics.read(run.metrics)
    logged = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logged] == [2, 4, 6, 8, 10]
    assert {"bpb", "perplexity", "lr", "grad_norm", "tokens_per_s", "mfu", "memory",
            "tokens"} <= logged[0].keys()
    assert logged[-1]["loss"] < logged[0]["loss"] and logged[-1]["tokens"] == 10 * 4 * 16
    evaluated = [row for row in rows if "val_loss" in row]
    assert [row["step"] for row in evaluated] == [4, 8, 10]
    assert {"val_bpb", "val_accuracy", "val_perplexity"} <= evaluated[0].keys()
    assert run.config["versions"][backend] and run.config["corpus"]["fingerprint"]


@pytest.mark.parametrize("arch", architectures())
def test_both_backends_see_the_same_run(arch: str) -> None:
    runs = [train("--steps", "6", "--arch", arch, backend=backend, name=backend)
            for backend in BACKENDS]
    a, b = ([row["loss"] for row in metrics.read(run.metrics) if "loss" in row] for run in runs)
    assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_chosen_and_chosen_again(backend: str) -> None:
    losses = []
    for form in ("sdpa", "plain", "chunked"):
        run = train("--arch", "gpt", "--attention", form, "--steps", "4", backend=backend,
                    name=form)
        assert resume(form, backend, "--steps", "6", "--attention", "sdpa") == 0
        assert run.settings.attention == "sdpa"
        losses.append([row["loss"] for row in metrics.read(run.metrics) if "loss" in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    with pytest.raises(UserError, match="bdh has no softmax attention: leave --attention out"):
        train("--attention", "plain", backend=backend, name="none")
    assert not Path("runs/none").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_init_takes_an_official_state_dict(backend: str) -> None:
    spec = spec_type("bdh").preset("tiny", vocab_size=256)
    weights = init_weights(spec, seed=5)
    save(Path("official.safetensors"), {**weights, "attn.freqs": np.ones((1, 1, 1, 4), "f4")})
    run = train("--init", "official.safetensors", "--steps", "1", "--lr", "1e-30",
                "--weight-decay", "0", backend=backend)
    for name, array in run.weights().items():
        np.testing.assert_allclose(array, weights[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_chooses_the_micro_batch(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = train("--memory", "64GB", "--steps", "2", backend=backend)
    assert "micro-batches of 4 rows" in capsys.readouterr().err
    big = ["--batch-size", "256", "--block-size", "64", "--steps", "2"]
    with started(*TINY, *big, "--backend", backend, "--name", "b", "--memory", "400MB") as process:
        _, said = process.communicate(timeout=120)
    rows = int(said.partition("micro-batches of ")[2].split()[0])
    assert process.returncode == 0 and 1 <= rows < 256
    logged = metrics.read(Path("runs", "b", "metrics.jsonl"))[0]
    assert logged["memory"] < 1.1 * 400 * 2**20
    assert plain.steps()[-1] == 2


@pytest.mark.xdist_group("compile")  # one process, which loads the compiler once
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_steps_are_the_same_steps(backend: str) -> None:
    options = [*TINY, "--steps", "4", "--micro-batch", "2", "--backend", backend,
               "--set", "n_layer=1", "--name"]
    assert call(*options, "plain") == 0 and call(*options, "compiled", "--compile") == 0
    a, b = ([row["loss"] for row in metrics.read(RunDir.open(name).metrics) if "loss" in row]
            for name in ("plain", "compiled"))
    assert len(a) == 2 and a == pytest.approx(b, rel=1e-5)


def test_tokens_count_a_curriculum() -> None:
    run = train("--tokens", "2000", "--seq-curriculum", "4:16", "--save-every", "1000")
    state, _, _ = checkpoint.load_last(run.path)
    assert 2000 <= state.tokens < 2000 + 4 * 16


@pytest.mark.needs("torch")
def test_what_is_waited_for_is_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock where a step takes a second, of whoever waits for it first, and every look at the
    held-out windows five more."""
    now, pending = 0.0, 0

    def slow(name: str, before: float, asks: bool) -> None:
        function = getattr(Trainer, name)

        def called(*args: Any) -> Any:
            nonlocal now, pending
            now, pending = now + before + pending * (not asks), pending + 1 if asks else 0
            return function(*args)

        monkeypatch.setattr(Trainer, name, called)

    from torch_models.trainer import Trainer

    slow("step", 0, True)
    slow("read", 0, False)
    slow("evaluate", 5, False)
    monkeypatch.setattr("train.loop.time", SimpleNamespace(monotonic=lambda: now))
    run = train("--steps", "8", "--log-every", "4", "--eval-every", "3", "--save-every", "2")
    rows = metrics.read(run.metrics)
    assert [row["tokens_per_s"] for row in rows if "loss" in row] == [64, 64]
    assert checkpoint.load_last(run.path)[0].elapsed == now >= rows[-1]["elapsed"]


def test_betas_and_momentum_reach_the_optimizer() -> None:
    args = parser().parse_args([*TINY, "--beta1", "0.8", "--beta2", "0.99", "--momentum", "0.7"])
    settings = settings_from(new_settings(args).to_dict())
    assert (settings.beta1, settings.beta2, settings.momentum) == (0.8, 0.99, 0.7)
    plain = settings_from(new_settings(parser().parse_args(TINY)).to_dict())
    assert (plain.beta1, plain.beta2) == (OptimizerSettings.beta1, OptimizerSettings.beta2)


def test_the_best_model_is_kept() -> None:
    run = train("--steps", "12", "--save-every", "1000", "--keep", "1")
    losses = {row["step"]: row["val_loss"] for row in metrics.read(run.metrics)
              if "val_loss" in row}
    assert checkpoint.best_step(run.path) == min(losses, key=losses.__getitem__)


@pytest.mark.needs("torch")
def test_a_broken_evaluation_hides_no_better_one(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = loop.Loop.evaluate

    def broken_once(self: loop.Loop, display: Any) -> bool:
        with monkeypatch.context() as patch:
            if self.state.step == 8:
                patch.setattr(self.trainer, "evaluate", lambda *data: (math.nan, 0))
            return evaluate(self, display)

    monkeypatch.setattr(loop.Loop, "evaluate", broken_once)
    run = train("--steps", "20", "--save-every", "1000", "--keep", "1", backend="torch")
    losses = {row["step"]: row["val_loss"] for row in metrics.read(run.metrics)
              if row.get("val_loss") is not None and math.isfinite(row["val_loss"])}
    best = checkpoint.best_step(run.path)
    assert 8 not in losses and best == min(losses, key=losses.__getitem__) > 8
