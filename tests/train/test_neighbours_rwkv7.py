"""rwkv7 leaves for mlx_lm, which gives our logits, and comes back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from specs import UserError, spec_type
from tests.train.neighbourhood import (
    adopted,
    agrees,
    change,
    exported,
    greedy,
    new_run,
    tokens,
    verdict,
)
from tests.train.test_neighbours_out import PROMPT, in_mlx_lm
from train.files import sha256

pytestmark = [pytest.mark.xdist_group("neighbours"), pytest.mark.usefixtures("here")]
TINY = spec_type("rwkv7").preset("tiny", vocab_size=256, block_size=64)
FORMS = {"tiny": {}, "tied": {"tie_embeddings": True, "head_dim": 16, "n_layer": 3},
         "odd": {"n_embd": 35, "head_dim": 7, "d_ff": 33, "norm_eps": 1e-3}}
OUT = Path("out")


@pytest.mark.needs("torch")
@pytest.mark.needs("mlx")
@pytest.mark.parametrize("form", FORMS)
def test_mlx_lm_gives_our_logits_and_text(form: str) -> None:
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    spec = TINY.replace(**FORMS[form])
    run = new_run("a", spec)
    model, weights = in_mlx_lm(exported(run, OUT, "mlx-lm")), run.weights()
    assert agrees(np.array(model(mx.array(tokens()))), verdict(spec, weights, tokens()))
    steps = list(generate_step(mx.array(PROMPT), model, max_tokens=20, prefill_step_size=4))
    text = greedy("mlx", spec, weights, PROMPT, 20)
    assert [int(token) for token, _ in steps] == text
    read = np.array([[*PROMPT, *text[:-1]]], np.int32)
    assert agrees(np.array([[np.array(p) for _, p in steps]]),
                  verdict(spec, weights, read, len(PROMPT) - 1), "log_probs")


@pytest.mark.needs("mlx")
def test_what_mlx_lm_saves_comes_back() -> None:
    """It keeps some vectors by heads."""
    from mlx.utils import tree_flatten

    run = new_run("a", TINY)
    model = in_mlx_lm(exported(run, OUT, "mlx-lm"))
    tensors = {name: np.array(w) for name, w in tree_flatten(model.parameters())}
    assert tensors["model.layers.0.attn.k_k"].shape == (4, 8)
    save_file(tensors, OUT / "model.safetensors")
    back = adopted(OUT, "b").weights()
    assert all(np.array_equal(back[name], w) for name, w in run.weights().items())


@pytest.mark.parametrize("form", FORMS)
def test_a_round_trip_keeps_every_byte(form: str) -> None:
    run = new_run("a", TINY.replace(**FORMS[form]))
    back = adopted(exported(run, OUT, "mlx-lm"), "b")
    assert back.spec == run.spec
    weights = [one.path / "step-00000000/model.safetensors" for one in (run, back)]
    assert sha256(weights[0]) == sha256(weights[1])
    again = exported(back, "again", "mlx-lm")
    assert all(sha256(file) == sha256(again / file.name) for file in OUT.iterdir())


def test_the_tensors_have_the_names_of_the_hub() -> None:
    """Those of flash-linear-attention, and its shapes."""
    run = new_run("a", TINY)
    found = load_file(exported(run, OUT, "mlx-lm") / "model.safetensors")
    weights, attn = run.weights(), "model.layers.1.attn."
    assert np.array_equal(found[attn + "w_lora.lora.0.weight"], weights["layers.1.mixer.w1"].T)
    assert np.array_equal(found[attn + "w_lora.lora.2.bias"], weights["layers.1.mixer.w0"])
    assert np.array_equal(found["model.layers.1.ffn.key.weight"],
                          weights["layers.1.mlp.up_proj.weight"])
    shapes = {name: found[attn + name].shape for name in (
        "x_g", "k_k", "r_k", "g_norm.bias", "v_lora.lora.2.weight", "g_lora.lora.0.weight")}
    assert shapes == {"x_g": (1, 1, 32), "k_k": (32,), "r_k": (4, 8), "g_norm.bias": (32,),
                      "v_lora.lora.2.weight": (32, 3), "g_lora.lora.0.weight": (6, 32)}
    assert "model.layers.0.attn.v_lora.lora.2.bias" not in found
    assert {"model.embeddings.weight", "model.layers.0.pre_norm.bias", "model.norm.bias",
            "lm_head.weight"} < found.keys()


def test_what_does_not_fit_is_refused() -> None:
    run = new_run("a", TINY)
    with pytest.raises(UserError, match="transformers has no rwkv7: export it --to mlx-lm"):
        exported(run, OUT, "hf")
    exported(run, OUT, "mlx-lm")
    for wrong, message in (({"hidden_act": "silu"}, "hidden_act = 'silu' is nothing"),
                           ({"hidden_act": "sqrelu", "norm_first": False}, "norm_first = False"),
                           ({"norm_first": True, "gate_low_rank_dim": 7}, r"says \(32, 7\)"),
                           ({"head_dim": 5}, "must be a multiple of head_dim = 5")):
        change(OUT / "config.json", **wrong)
        with pytest.raises(UserError, match=message):
            adopted(OUT, "b")
