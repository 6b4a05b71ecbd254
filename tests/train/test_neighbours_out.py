"""Runs walk out: transformers and mlx_lm run them with their own code and give our logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from parity.budget import Verdict
from parity.cases import lively_weights
from specs import Spec, UserError
from specs.backend import Arrays
from tests.train.neighbourhood import (
    GPT,
    GPT2_FORM,
    OURS,
    OURS_FOR_TRANSFORMERS,
    SMALL,
    TEXT,
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
from train import export
from train.files import sha256
from train.rundir import RunDir
from train.tokenizer import make_tokenizer

pytestmark = [pytest.mark.xdist_group("neighbours"), pytest.mark.usefixtures("here"),
              pytest.mark.filterwarnings("ignore:builtin type .* has no __module__")]
PROMPT = tokens(1, 9)[0]
needs_torch, needs_mlx = pytest.mark.needs("torch"), pytest.mark.needs("mlx")


def in_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def in_mlx_lm(folder: Path) -> Any:
    import mlx_lm

    carries = "model_file" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return mlx_lm.load(str(folder), trust_remote_code=carries)[0]


def mlx_logits(model: Any, data: np.ndarray) -> np.ndarray:
    import mlx.core as mx

    return np.array(model(mx.array(data)))


def mlx_greedy(model: Any, count: int) -> tuple[list[int], np.ndarray]:
    """The likeliest tokens after the prompt, and the log-probabilities that each was taken from."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    steps = list(generate_step(mx.array(PROMPT), model, max_tokens=count, prefill_step_size=4))
    return [int(token) for token, _ in steps], np.array([np.array(p) for _, p in steps])


def steps(spec: Spec, weights: Arrays, text: list[int]) -> Verdict:
    """What the tokens of `text` are taken from, after the prompt."""
    return verdict(spec, weights, np.array([[*PROMPT, *text[:-1]]], np.int32), len(PROMPT) - 1)


@needs_torch
@pytest.mark.parametrize("form", [*OURS, *OURS_FOR_TRANSFORMERS])
def test_transformers_gives_our_logits_and_text(form: str) -> None:
    import torch

    spec = {**OURS, **OURS_FOR_TRANSFORMERS}[form]
    run = new_run("a", spec)
    model, weights = in_transformers(exported(run, "out")), run.weights()
    assert model.config.eos_token_id is None  # no token of ours ends a text
    assert agrees(their_logits(model, tokens()), verdict(spec, weights, tokens()))
    text = greedy("torch", spec, weights, PROMPT, 20)
    found = model.generate(torch.tensor(PROMPT[None], dtype=torch.long), max_new_tokens=20,
                           do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert found.sequences[0].tolist() == [*PROMPT, *text]
    assert agrees(np.stack(found.logits, 1), steps(spec, weights, text))


@needs_torch
@needs_mlx
@pytest.mark.parametrize("form", OURS)
def test_mlx_lm_gives_our_logits_and_text(form: str) -> None:
    spec = OURS[form]
    run = new_run("a", spec)
    model, weights = in_mlx_lm(exported(run, "out", "mlx-lm")), run.weights()
    assert agrees(mlx_logits(model, tokens()), verdict(spec, weights, tokens()))
    text = greedy("mlx", spec, weights, PROMPT, 20)
    found, log_probs = mlx_greedy(model, 20)
    assert found == text
    assert agrees(log_probs[None], steps(spec, weights, text), "log_probs")


# Sizes that can be cut into groups of 32; Qwen3-MoE's router always goes in groups of 64.
QUANTIZED: dict[str, dict[str, Any]] = {
    "gpt2": {}, "llama": {}, "qwen3": {"head_dim": None}, "mistral": {},
    "mixtral": {"d_ff": 32}, "qwen3-moe": {"n_embd": 64, "head_dim": None, "d_ff": 32},
    "deepseek-v2": {"q_lora_rank": 32, "kv_lora_rank": 32, "v_head_dim": 16}}


@needs_mlx
@pytest.mark.parametrize("form, fields", QUANTIZED.items(), ids=QUANTIZED)
def test_quantized_by_mlx_lm_it_still_generates(form: str, fields: dict[str, Any]) -> None:
    from mlx_lm import convert

    spec = OURS[form].replace(**fields)
    folder = exported(new_run("a", spec), "out", "mlx-lm")
    convert(str(folder), "small", quantize=True, q_bits=4, q_group_size=32,
            trust_remote_code=form == "mistral")
    whole, model = in_mlx_lm(folder), in_mlx_lm(Path("small"))
    text, _ = mlx_greedy(model, 20)
    logits = mlx_logits(model, np.array([[*PROMPT, *text]]))[0, len(PROMPT) - 1:-1]
    assert logits.argmax(-1).tolist() == text
    exact = mlx_logits(whole, tokens())
    share = np.linalg.norm(mlx_logits(model, tokens()) - exact) / np.linalg.norm(exact)
    assert 1e-3 < share < 0.5  # it was quantized, and is still this model


@pytest.mark.parametrize("form", OURS)
def test_both_targets_are_the_same_files_but_for_a_model_file(form: str) -> None:
    run = new_run("a", OURS[form])
    one, two = exported(run, "hf"), exported(run, "mlx", "mlx-lm")
    files = {file.name: sha256(file) for file in one.iterdir()}
    others = {file.name: sha256(file) for file in two.iterdir()}
    if form != "mistral":
        assert files == others
    else:
        assert others.keys() - files.keys() == {"mistral.py"}
        assert files["model.safetensors"] == others["model.safetensors"]


@pytest.mark.parametrize("form", OURS)
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:270"])
def test_a_round_trip_keeps_every_byte(form: str, tokenizer: str) -> None:
    text = Path("text.txt").read_text(encoding="utf-8")
    spec = OURS[form].replace(vocab_size=300)
    run = new_run("a", spec, make_tokenizer(tokenizer, [text]))
    back = adopted(exported(run, "out"), "b")
    assert sha256(back.path / "tokenizer.json") == sha256(run.path / "tokenizer.json")
    if form != "gpt2-unbiased":  # its biases come back, as zeros
        assert sha256(back.path / "step-00000000/model.safetensors") == sha256(
            run.path / "step-00000000/model.safetensors")
    again = exported(back, "again")
    assert all(sha256(file) == sha256(again / file.name) for file in Path("out").iterdir())


@needs_torch
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:270"])
def test_the_tokenizer_survives(tokenizer: str) -> None:
    import mlx_lm.tokenizer_utils
    from transformers import AutoTokenizer

    ours = make_tokenizer(tokenizer, [Path("text.txt").read_text(encoding="utf-8")])
    folder = exported(new_run("a", GPT(**{**SMALL, "vocab_size": 300}), ours), "out")
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = theirs(TEXT).input_ids
    assert ids == ours.encode(TEXT).tolist() and theirs.decode(ids) == TEXT
    assert theirs.eos_token_id is None
    streaming = mlx_lm.tokenizer_utils.load(folder).detokenizer
    said = TEXT.strip().replace("\0", "")  # its own rules for a first space and a zero byte
    for id in ours.encode(said):
        streaming.add_token(int(id))
    streaming.finalize()
    assert streaming.text == said


@needs_torch
def test_what_came_with_an_adopted_model_goes_out_with_it() -> None:
    save_theirs("qwen3", Path("theirs"), eos_token_id=7, max_position_embeddings=5000)
    Path("theirs/tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "\\u0107"}')
    Path("theirs/chat_template.jinja").write_text("{{ messages[0].content }}")
    folder = exported(adopted(Path("theirs"), "a", "--block-size", "32"), "out")
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == Path("theirs", name).read_bytes()
    config = in_transformers(folder).config
    assert config.eos_token_id == 7 and config.max_position_embeddings == 5000


LLAMA, FOR_TRANSFORMERS = GPT(**SMALL), OURS_FOR_TRANSFORMERS
MIXTRAL, QWEN3_MOE = OURS["mixtral"], OURS["qwen3-moe"]
DEEPSEEK_V2 = OURS["deepseek-v2"]
REFUSED: dict[str, tuple[Spec, str, str]] = {
    "sinks": (LLAMA.replace(window=6, sinks=2), "hf", "sinks = 2"),
    "soft-cap": (LLAMA.replace(logit_softcap=30.0), "hf", "logit_softcap = 30.0"),
    "gelu-llama": (LLAMA.replace(mlp="gelu"), "hf", "mlp = 'gelu'"),
    "relu2-llama": (LLAMA.replace(mlp="relu2"), "hf", "mlp = 'relu2'"),
    "no-positions": (LLAMA.replace(pos="none"), "hf", "pos = 'none'"),
    "rotary-layernorm": (GPT(**{**GPT2_FORM, "pos": "rope"}), "hf", "pos = 'rope'"),
    "swiglu-gpt2": (LLAMA.replace(norm="layernorm", pos="learned"), "hf", "mlp = 'swiglu'"),
    "grouped-gpt2": (LLAMA.replace(norm="layernorm", pos="learned", mlp="gelu"), "hf",
                     "n_kv_head = 2"),
    "biased-qwen3": (LLAMA.replace(qk_norm=True, bias=True), "hf", "bias = True"),
    "biased-mistral": (LLAMA.replace(window=6, bias=True), "hf", "bias = True"),
    "shared-experts": (MIXTRAL.replace(n_shared_experts=1), "hf", "n_shared_experts = 1"),
    "shared-experts-qwen3": (QWEN3_MOE.replace(n_shared_experts=2), "hf", "n_shared_experts = 2"),
    "balance-by-bias": (QWEN3_MOE.replace(balance="bias"), "hf", "balance = 'bias'"),
    "gelu-experts": (MIXTRAL.replace(expert_mlp="gelu"), "hf", "expert_mlp = 'gelu'"),
    "silu-experts": (QWEN3_MOE.replace(expert_mlp="silu"), "hf", "expert_mlp = 'silu'"),
    "scaled-embedding": (MIXTRAL.replace(embed_scale=True), "hf", "embed_scale = True"),
    "raw-mixtral": (MIXTRAL.replace(norm_topk_prob=False), "hf", "norm_topk_prob = False"),
    "latents-eps": (DEEPSEEK_V2.replace(norm_eps=1e-5), "hf", "norm_eps = 1e-05"),
    "latents-width": (DEEPSEEK_V2.replace(n_embd=30), "hf", "n_embd = 30"),
    "gelu-mlx": (FOR_TRANSFORMERS["nanogpt"], "mlx-lm", "mlp = 'gelu'"),
    "untied-mlx": (FOR_TRANSFORMERS["gpt2-untied"], "mlx-lm", "d_ff = 48"),
    "window-mlx": (FOR_TRANSFORMERS["qwen3-window"], "mlx-lm", "window = 6"),
    "mixtral-wide-mlx": (FOR_TRANSFORMERS["mixtral-wide"], "mlx-lm", "head_dim = 12"),
    "mixtral-odd-mlx": (FOR_TRANSFORMERS["mixtral-odd-width"], "mlx-lm", "head_dim = 8"),
}


@pytest.mark.parametrize("spec, to, message", REFUSED.values(), ids=REFUSED)
def test_what_upstream_cannot_say_is_refused_by_name(spec: Spec, to: str, message: str) -> None:
    new_run("a", spec)
    with pytest.raises(UserError) as caught:
        export.main(["--run", "a", "--to", to, "out"])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(Path().glob("*out*"))


def test_an_empty_folder_is_filled_and_any_other_refused() -> None:
    run = new_run("a", GPT(**SMALL))
    Path("out").mkdir()
    exported(run, "out")
    before = {file: file.stat() for file in Path("out").iterdir()}
    for taken in ("out", "text.txt"):
        with pytest.raises(UserError, match=f"{taken} exists"):
            export.main(["--run", "a", "--to", "hf", taken])
    assert {file: file.stat() for file in Path("out").iterdir()} == before
    assert {"out", "runs", "text.txt", "cache"} >= {path.name for path in Path().iterdir()}


def test_the_folder_in_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new folder would take its place, and the shell be left in one that is gone."""
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    with pytest.raises(UserError, match="the folder you are in"):
        export.main(["--run", "a", "--to", "hf", "."])


def test_other_runs_and_steps_are_refused() -> None:
    new_run("a", GPT(**SMALL))
    for arguments, message in ((["--run", "b"], "no run 'b'"),
                               (["--run", "a", "--step", "7"], "no checkpoint at step 7")):
        with pytest.raises(UserError, match=message):
            export.main([*arguments, "--to", "hf", "out"])
    change(RunDir.open("a").path / "config.json", arch="none")
    with pytest.raises(UserError, match="no architecture 'none'"):
        export.main(["--run", "a", "--to", "hf", "out"])


def test_the_weights_go_out_unchanged() -> None:
    """Against a reading of the files that knows nothing of the table."""
    weights, found = lively_weights(OURS["gpt2"], 0), tensors("gpt2")
    q, k, v = (weights[f"layers.1.mixer.{name}_proj.weight"] for name in "qkv")
    assert np.array_equal(found["h.1.attn.c_attn.weight"], np.hstack([q.T, k.T, v.T]))
    assert np.array_equal(found["h.0.mlp.c_fc.bias"], weights["layers.0.mlp.up_proj.bias"])
    assert found.keys().isdisjoint({"lm_head.weight"}) and len(found) == 2 + 2 * 12 + 2
    weights, found = lively_weights(OURS["mixtral"], 0), tensors("mixtral")
    for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
        stack = weights[f"layers.1.mlp.experts.{ours}_proj"]
        for e in range(6):
            name = f"model.layers.1.block_sparse_moe.experts.{e}.{theirs}.weight"
            assert np.array_equal(found[name], stack[e])
    assert len(found) == 3 + 2 * (7 + 3 * 6)
    weights, found = lively_weights(OURS["deepseek-v2-tied"], 0), tensors("deepseek-v2-tied")
    assert np.array_equal(found["lm_head.weight"], weights["embed.weight"])
    assert np.array_equal(found["model.layers.0.self_attn.kv_a_proj_with_mqa.bias"],
                          weights["layers.0.mixer.kv_a_proj.bias"])


def tensors(form: str) -> Arrays:
    """What is in an exported file."""
    folder = exported(new_run(form, OURS[form]), f"out-{form}")
    return load_file(folder / "model.safetensors")
