"""A folder that cannot be adopted is refused in one line, and nothing of it is left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from specs import main_exit
from tests.train.neighbourhood import OURS, change, exported, new_run
from train import adopt
from train.tokenizer import make_tokenizer

pytestmark = [pytest.mark.xdist_group("neighbours"), pytest.mark.usefixtures("here")]
DIR = Path("theirs")
CONFIG, WEIGHTS = DIR / "config.json", DIR / "model.safetensors"
INDEX = DIR / "model.safetensors.index.json"
EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
PICKLE = DIR / "pytorch_model.bin"


def config(form: str, **values: Any) -> tuple[str, Callable[[], Any]]:
    return form, lambda: change(CONFIG, **values)


def tensors(form: str, **arrays: Any) -> tuple[str, Callable[[], Any]]:
    """Other tensors in the file; None removes one."""
    def edit() -> None:
        held = {**load_file(WEIGHTS), **{name.replace("__", "."): a for name, a in arrays.items()}}
        save_file({name: a for name, a in held.items() if a is not None}, WEIGHTS)

    return form, edit


def files(form: str, edit: Callable[[], Any]) -> tuple[str, Callable[[], Any]]:
    return form, edit


def index(places: Any) -> Callable[[], Any]:
    def edit() -> None:
        WEIGHTS.rename(DIR / "model-00001.safetensors")
        INDEX.write_text(json.dumps({"weight_map": places}), encoding="utf-8")

    return edit


def pickled() -> None:
    """A file that would make a folder `harm` if it were unpickled."""
    WEIGHTS.unlink()
    PICKLE.write_bytes(b"cos\nmkdir\n(S'harm'\ntR.")


CASES: dict[str, tuple[tuple[str, Callable[[], Any]], str]] = {
    "no-config": (files("llama", CONFIG.unlink), "config.json is missing"),
    "no-json": (files("llama", lambda: CONFIG.write_text("{")), "config.json is damaged"),
    "no-object": (files("llama", lambda: CONFIG.write_text("[]")), "it is no JSON object"),
    "no-type": (config("llama", model_type=None), "model_type = None is no architecture"),
    "odd-type": (config("llama", model_type=["llama"]), "model_type = ['llama'] is no"),
    "other-type": (config("llama", model_type="lama"), "did you mean 'llama'"),
    "no-weights": (files("llama", WEIGHTS.unlink), "has no model.safetensors"),
    "pickle": (files("llama", pickled), "python -c 'import sys, transformers"),
    "truncated": (files("llama", lambda: os.truncate(WEIGHTS, 9000)), "no safetensors file"),
    "empty": (files("llama", lambda: os.truncate(WEIGHTS, 0)), "no safetensors file"),
    "no-tokenizer": (files("llama", (DIR / "tokenizer.json").unlink), "has no tokenizer.json"),
    "bad-tokenizer": (files("llama", lambda: (DIR / "tokenizer.json").write_text("{}")),
                      "this is no tokenizer.json"),
    "lost-shard": (files("llama", index({"a": "model-00002.safetensors"})), "is missing, which"),
    "lost-tensor": (files("llama", index({"a": "model-00001.safetensors"})), "lacks 'a'"),
    "escaping-index": (files("llama", index({"a": "../text.txt"})), "must name files beside it"),
    "odd-index": (files("llama", index(["a"])), "must name files beside it"),
    "missing": (tensors("llama", model__norm__weight=None), "'model.norm.weight' is missing"),
    "head-missing": (tensors("llama", lm_head__weight=None), "'lm_head.weight' is missing"),
    "extra": (tensors("gpt2", h__0__attn__rotary=np.ones(3, np.float32)),
              "'h.0.attn.rotary' is unknown"),
    "more-layers": (config("qwen3", num_hidden_layers=1),
                    "'model.layers.1.input_layernorm.weight' is unknown"),
    "misshapen": (tensors("gpt2", h__1__mlp__c_fc__weight=np.ones((128, 32), np.float32)),
                  "h.1.mlp.c_fc.weight is (128, 32), config.json says (32, 128)"),
    "integers": (tensors("mistral", model__norm__weight=np.ones(32, np.int32)), "dequantized"),
    "two-heads": (tensors("gpt2", lm_head__weight=np.ones((256, 32), np.float32)),
                  "lm_head.weight is not the embedding"),
    "quantized": (config("llama", quantization_config={"bits": 4}), "are quantized"),
    "rope-scaled": (config("llama", rope_scaling={"type": "linear", "factor": 2.0}),
                    "positions that are scaled"),
    "rope-parameters": (config("qwen3", rope_parameters={"rope_type": "yarn", "factor": 4.0}),
                        "positions that are scaled"),
    "rope-of-another-context": (config("llama", rope_parameters={
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 4096}),
        "positions that are scaled"),
    "rope-in-part": (config("llama", partial_rotary_factor=0.5, rope_parameters={
        "rope_type": "default", "rope_theta": 10.0}), "rotate in part"),
    "rope-no-object": (config("llama", rope_scaling="linear"), "must be an object"),
    "activation": (config("llama", hidden_act="gelu"), "hidden_act = 'gelu' is not known"),
    "one-bias": (config("llama", attention_bias=True), "attention_bias = True and mlp_bias"),
    "qwen-bias": (config("qwen3", attention_bias=True), "attention_bias = True is nothing"),
    "scaled-scores": (config("gpt2", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inv"),
    "mixed-layers": (config("qwen3", use_sliding_window=True, sliding_window=4,
                            max_window_layers=1), "the layers see differently far"),
    "odd-layers": (config("qwen3", layer_types="full_attention"), "see differently far"),
    "no-width": (config("llama", hidden_size=None), "'hidden_size' is missing"),
    "width-in-words": (config("llama", hidden_size="32"), "n_embd = '32' must be a whole number"),
    "odd-width": (config("gpt2", n_embd=30), "n_embd = 30 must be a multiple of n_head"),
    "narrow-window": (config("mistral", sliding_window=1), "window = 1 must be"),
    "windowed-experts": (config("mixtral", sliding_window=8), "sliding_window = 8 is nothing"),
    "fewer-experts": (config("mixtral", num_local_experts=5), "is (6, 32), config.json says (5"),
    "lost-expert": (tensors("mixtral", **{EXPERT: None}), f"{EXPERT!r} is missing"),
    "two-counts": (config("qwen3-moe", num_local_experts=7),
                   "num_experts = 6 and num_local_experts = 7"),
    "gelu-experts": (config("qwen3-moe", hidden_act="gelu"), "hidden_act = 'gelu' is not known"),
    "too-many-chosen": (config("mixtral", num_experts_per_tok=7), "n_experts_per_tok = 7 must be"),
    "dense-layers": (config("qwen3-moe", mlp_only_layers=[1]), "mlp_only_layers = [1] is nothing"),
    "sparse-steps": (config("qwen3-moe", decoder_sparse_step=2), "decoder_sparse_step = 2 is"),
    "misshapen-expert": (tensors("mixtral", **{EXPERT: np.ones((24, 32), np.float32)}),
                         f"{EXPERT} is (24, 32), config.json says (32, 24)"),
    "experts-and-latents": (config("deepseek-v2", first_k_dense_replace=1),
                            "first_k_dense_replace = 1: some of its 2 layers have experts"),
    "grouped-latents": (config("deepseek-v2", num_key_value_heads=2),
                        "num_attention_heads = 4 and num_key_value_heads = 2"),
    "other-eps": (config("deepseek-v2", rms_norm_eps=1e-5), "rms_norm_eps = 1e-05, while"),
    "long-context": (config("deepseek-v2", rope_scaling={"type": "yarn", "factor": 40.0}),
                     "positions that are scaled"),
    "small-vocabulary": (config("llama", vocab_size=100), "is (256, 32)"),
}


def ending(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What train/adopt.py says as it refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main_exit(lambda: adopt.main(["--from", str(DIR), "--data", "text.txt", *options]))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.fixture
def theirs() -> Callable[[str], None]:
    return lambda form: (exported(new_run("a", OURS[form]), DIR), None)[1]


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_left(case: str, theirs: Callable[[str], None],
                                   capsys: pytest.CaptureFixture[str]) -> None:
    (form, edit), message = CASES[case]
    theirs(form)
    edit()
    assert message in ending(capsys, "--name", "b")
    assert [path.name for path in Path("runs").iterdir()] == ["a"] and not Path("harm").exists()


OPTIONS = {
    "known-name": ("llama", ["--name", "a"], "choose another --name"),
    "learned-window": ("gpt2", ["--block-size", "32"], "has learned 64 positions"),
    "long-window": ("llama", ["--block-size", "5000"], "lower --block-size"),
    "no-window": ("llama", ["--block-size", "-1"], "block_size = -1 must be"),
    "no-data": ("llama", ["--data", "nowhere.txt"], "nowhere.txt"),
}


@pytest.mark.parametrize("form, options, message", OPTIONS.values(), ids=OPTIONS)
def test_bad_options(form: str, options: list[str], message: str,
                     theirs: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    theirs(form)
    assert message in ending(capsys, *options)


def test_a_large_tokenizer_is_refused(theirs: Callable[[str], None],
                                      capsys: pytest.CaptureFixture[str]) -> None:
    theirs("llama")
    large = make_tokenizer("bpe:400", [Path("text.txt").read_text(encoding="utf-8")])
    Path("large.json").write_text(large.to_json(), encoding="utf-8")
    assert "the model knows 256" in ending(capsys, "--tokenizer", "large.json")


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no folder theirs" in ending(capsys)
