"""Models of transformers become runs: their logits are ours, and the runs are like any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from generate.sampling import Sampler
from generate.text import write
from specs.backend import BACKENDS, OptimizerSettings, fresh_state, load_backend
from tests.train.neighbourhood import (
    THEIRS,
    adopted,
    agrees,
    change,
    greedy,
    save_theirs,
    their_logits,
    tokens,
    verdict,
)
from train import adopt, checkpoint, metrics
from train import run as train
from train.neighbours import neighbour
from train.neighbours.table import REQUIRED, Form

pytestmark = [pytest.mark.xdist_group("neighbours"), pytest.mark.usefixtures("here"),
              pytest.mark.needs("torch")]


def forms(arch: str) -> list[Form]:
    return [value for value in vars(neighbour(arch)).values() if isinstance(value, Form)]


@pytest.mark.parametrize("name", THEIRS)
def test_their_logits_are_ours(name: str) -> None:
    model = save_theirs(name, Path("theirs"))
    spec, weights = adopt.read(Path("theirs"))
    assert sum(p.numel() for p in model.parameters()) == spec.param_count()
    truth = verdict(spec, weights, tokens())
    assert agrees(their_logits(model, tokens()), truth)
    for backend in BACKENDS:
        panel = load_backend(backend, "cpu")
        assert agrees(panel.logits(panel.build(spec, weights), tokens()), truth)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3-window", "mistral", "mixtral",
                                  "qwen3-moe", "deepseek-v2"])
def test_their_greedy_text_is_ours(name: str) -> None:
    import torch

    model = save_theirs(name, Path("theirs"))
    spec, weights = adopt.read(Path("theirs"))
    prompt = tokens(1, 9)[0]
    text = model.generate(torch.tensor(prompt[None], dtype=torch.long), max_new_tokens=20,
                          do_sample=False)[0, 9:].tolist()
    for backend in BACKENDS:
        assert greedy(backend, spec, weights, prompt, 20) == text


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "deepseek-v2"])
def test_sharded_half_precision_is_read(name: str) -> None:
    import torch

    model = save_theirs(name, Path("whole"))
    model.to(torch.bfloat16).save_pretrained("shards", max_shard_size="20KB")
    assert len(list(Path("shards").glob("*.safetensors"))) > 2
    _, weights = adopt.read(Path("shards"))
    model.float().save_pretrained("rounded")
    _, rounded = adopt.read(Path("rounded"))
    assert all(weights[key].dtype == np.float32 for key in weights)
    assert all(np.array_equal(weights[key], rounded[key]) for key in rounded)


def test_files_of_old_are_read() -> None:
    """No prefix, masks as buffers, a tied head stored twice, keys that came later missing."""
    save_theirs("gpt2", Path("theirs"))
    spec, weights = adopt.read(Path("theirs"))
    file = Path("theirs/model.safetensors")
    tensors = {key.removeprefix("transformer."): w for key, w in load_file(file).items()}
    masks = {f"h.{i}.attn.{name}": np.ones(shape, np.float32) for i in range(2)
             for name, shape in (("bias", (1, 1, 64, 64)), ("masked_bias", ()))}
    save_file({**tensors, **masks, "lm_head.weight": tensors["wte.weight"]}, file)
    change(Path("theirs/config.json"), tie_word_embeddings=None, scale_attn_weights=None,
           n_ctx=64, add_cross_attention=None)
    same, again = adopt.read(Path("theirs"))
    assert same == spec and all(np.array_equal(weights[key], again[key]) for key in weights)


def test_rope_theta_of_old_is_read() -> None:
    save_theirs("llama-theta", Path("theirs"))
    new, _ = adopt.read(Path("theirs"))
    change(Path("theirs/config.json"), rope_parameters=None, rope_theta=500)
    old, _ = adopt.read(Path("theirs"))
    assert new == old and new.to_dict()["rope_theta"] == 500


@pytest.mark.parametrize("form", [form for arch in ("gpt", "moe", "mla")
                                  for form in forms(arch)], ids=lambda form: form.model_type)
def test_what_config_json_leaves_out_is_as_in_transformers(form: Form) -> None:
    from transformers import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[form.model_type]
    fields = {field.name: field.default for field in dataclasses.fields(theirs)}
    fields["rope_theta"] = theirs.default_theta
    left_out = {name: key.default for key in form.keys.values() for name in key.names
                if key.default is not REQUIRED and name in fields}
    assert left_out == {name: fields[name] for name in left_out} and len(left_out) > 2


@pytest.mark.parametrize("backend, optimizer", [("mlx", "adamw"), ("torch", "muon")])
def test_an_adopted_run_is_trained_further(backend: str, optimizer: str) -> None:
    save_theirs("qwen3", Path("theirs"))
    run = adopted(Path("theirs"), "a", "--block-size", "16", "--batch-size", "4", "--optimizer",
                  optimizer, "--lr", "1e-2")
    assert run.spec.block_size == 16 and run.settings.steps == 0
    assert train.main(["--resume", "a", "--backend", backend, "--steps", "6",
                       "--log-every", "1"]) == 0
    losses = [row["loss"] for row in metrics.read(run.metrics) if "loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_fresh_state_is_that_of_both_trainers(optimizer: str) -> None:
    save_theirs("llama", Path("theirs"))
    spec, weights = adopt.read(Path("theirs"))
    fresh = fresh_state(spec, OptimizerSettings(optimizer=optimizer))
    for backend in BACKENDS:
        panel = load_backend(backend, "cpu")
        state = panel.trainer(panel.build(spec, weights),
                              OptimizerSettings(optimizer=optimizer)).state()
        assert state.keys() == fresh.keys()
        assert all(state[key].dtype == fresh[key].dtype and np.array_equal(state[key], fresh[key])
                   for key in fresh)


def test_an_adopted_run_generates() -> None:
    save_theirs("gpt2", Path("theirs"))
    run = adopted(Path("theirs"), "a")
    panel = load_backend("torch", "cpu")
    pieces = write(panel, panel.build(run.spec, run.weights()), run.tokenizer(), ["The "],
                   Sampler(temperature=0), 12)
    ids = greedy("torch", run.spec, run.weights(), run.tokenizer().encode("The "), 12)
    assert "".join(piece.text for piece in pieces) == run.tokenizer().decode(ids)


def test_long_models_get_a_window_to_train_with(capsys: pytest.CaptureFixture[str]) -> None:
    save_theirs("llama", Path("theirs"), max_position_embeddings=40_000)
    Path("text.txt").write_text("to be or not to be " * 1000, encoding="utf-8")
    assert adopted(Path("theirs"), "a").spec.block_size == adopt.WINDOW
    assert "windows of 1024 tokens" in capsys.readouterr().err
    assert checkpoint.steps(Path("runs/a")) == [0]
