"""Mamba-2 walks out to both libraries and comes back; where they compute otherwise, it stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from specs import UserError, spec_type
from specs.backend import load_backend
from tests.train.neighbourhood import (
    adopted,
    agrees,
    change,
    exported,
    greedy,
    new_run,
    save_theirs,
    their_logits,
    tokens,
    verdict,
)
from tests.train.test_neighbours_out import (
    PROMPT,
    in_mlx_lm,
    in_transformers,
    mlx_greedy,
    mlx_logits,
    steps,
)
from train import adopt
from train.files import sha256

pytestmark = [pytest.mark.xdist_group("neighbours"), pytest.mark.usefixtures("here"),
              pytest.mark.filterwarnings("ignore:builtin type .* has no __module__")]
SMALL = spec_type("mamba2").preset("tiny", vocab_size=256, block_size=64, d_state=12)
OURS: dict[str, dict[str, Any]] = {
    "plain": {"dropout": 0.1},
    "untied": {"tie_embeddings": False, "head_dim": 8, "chunk_size": 7, "d_conv": 3, "expand": 3}}
GROUPS = {"n_groups": 2, "norm_eps": 1e-3}


@pytest.mark.needs("torch")
@pytest.mark.parametrize("fields", [*OURS.values(), GROUPS], ids=[*OURS, "groups"])
def test_transformers_gives_our_logits_and_text(fields: dict[str, Any]) -> None:
    import torch

    spec = SMALL.replace(**fields)
    run = new_run("a", spec)
    model, weights = in_transformers(exported(run, "out")), run.weights()
    assert agrees(their_logits(model, tokens()), verdict(spec, weights, tokens()))
    text = greedy("torch", spec, weights, PROMPT, 12)
    found = model.generate(torch.tensor(PROMPT[None], dtype=torch.long), max_new_tokens=12,
                           do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert found.sequences[0].tolist() == [*PROMPT, *text]
    assert agrees(np.stack(found.logits, 1), steps(spec, weights, text))


@pytest.mark.needs("torch")
@pytest.mark.needs("mlx")
@pytest.mark.parametrize("fields", OURS.values(), ids=OURS)
def test_mlx_lm_gives_our_logits_and_text(fields: dict[str, Any]) -> None:
    spec = SMALL.replace(**fields)
    run = new_run("a", spec)
    model, weights = in_mlx_lm(exported(run, "out", "mlx-lm")), run.weights()
    assert agrees(mlx_logits(model, tokens()), verdict(spec, weights, tokens()))
    text = greedy("mlx", spec, weights, PROMPT, 12)
    found, log_probs = mlx_greedy(model, 12)
    assert found == text
    assert agrees(log_probs[None], steps(spec, weights, text), "log_probs")


@pytest.mark.parametrize("fields", OURS.values(), ids=OURS)
def test_a_round_trip_keeps_every_byte(fields: dict[str, Any]) -> None:
    run = new_run("a", SMALL.replace(**fields, time_step_limit=[0.01, 0.5]))
    back = adopted(exported(run, "out", "mlx-lm"), "b")
    assert back.spec == run.spec.replace(dropout=0.0)
    weights = [one.path / "step-00000000/model.safetensors" for one in (run, back)]
    assert sha256(weights[0]) == sha256(weights[1])
    again = exported(back, "again", "mlx-lm")
    assert all(sha256(file) == sha256(again / file.name) for file in Path("out").iterdir())


def test_both_targets_are_the_same_files() -> None:
    run = new_run("a", SMALL)
    one, two = exported(run, "hf"), exported(run, "mlx", "mlx-lm")
    assert {f.name: sha256(f) for f in one.iterdir()} == {f.name: sha256(f) for f in two.iterdir()}


@pytest.mark.parametrize("fields, to, message", [
    ({"time_step_limit": [0.0, 0.5]}, "hf", "time_step_limit = (0.0, 0.5) cannot be exported"),
    ({"n_groups": 2}, "mlx-lm", "n_groups = 2 cannot be exported: mlx_lm has only n_groups = 1"),
    ({"norm_eps": 1e-6}, "mlx-lm", "norm_eps = 1e-06 cannot be exported")], ids=str)
def test_what_they_compute_otherwise_stays(fields: dict[str, Any], to: str, message: str) -> None:
    run = new_run("a", SMALL.replace(**fields))
    with pytest.raises(UserError) as caught:
        exported(run, "out", to)
    assert message in str(caught.value) and not Path("out").exists()


@pytest.mark.needs("torch")
def test_their_files_are_read_as_either_writes_them() -> None:
    """An infinite limit as an object or as a number; filters with their axes in either order."""
    model = save_theirs("mamba2", Path("theirs"))
    file, config = Path("theirs/model.safetensors"), Path("theirs/config.json")
    assert "__float__" in json.dumps(json.loads(config.read_text())["time_step_limit"])
    spec, weights = adopt.read(Path("theirs"))
    assert spec.time_step_limit == (0.0, None)  # type: ignore[attr-defined]
    save_file({name: np.ascontiguousarray(np.swapaxes(w, 1, 2)) if "conv1d.weight" in name else w
               for name, w in load_file(file).items()}, file)
    change(config, time_step_limit=[0.0, float("inf")])
    same, again = adopt.read(Path("theirs"))
    assert same == spec and all(np.array_equal(weights[name], again[name]) for name in weights)
    panel = load_backend("torch", "cpu")
    assert agrees(panel.logits(panel.build(spec, weights), tokens()),
                  verdict(spec, weights, tokens()))
    assert model.config.num_heads == spec.heads  # type: ignore[attr-defined]


@pytest.mark.parametrize("values, message", [
    ({"use_bias": True}, "use_bias = True is nothing that our architecture has"),
    ({"num_heads": 3}, "num_heads = 3 does not fit expand = 2"),
    ({"n_groups": 3}, "n_groups = 3 must be a divisor"),
    ({"ssm_state_size": 5}, "state_size = 12 and ssm_state_size = 5"),
    ({"time_step_limit": "auto"}, "time_step_limit = 'auto' must be a list of 2 values"),
    ({"conv_kernel": 5}, "conv1d.weight is (88, 4), config.json says (88, 5)")], ids=str)
def test_a_folder_that_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    change(exported(new_run("a", SMALL), "out") / "config.json", **values)
    with pytest.raises(UserError) as caught:
        adopted(Path("out"), "b")
    assert message in str(caught.value) and "\n" not in str(caught.value)
