"""Tiny models of both sides, for the tests that let the neighbours run them.

transformers and mlx_lm are imported where they are used: a machine may lack one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from parity.budget import Verdict, distance, judge
from parity.cases import Case, lively_weights
from parity.choices import hesitations
from parity.subject import Subject
from specs import Spec, spec_type
from specs.backend import Arrays, Batch, fresh_state, load_backend, settings_from
from train import adopt, checkpoint, export
from train.checkpoint import TrainState
from train.rundir import RunDir
from train.settings import Settings
from train.tokenizer import Tokenizer, make_tokenizer

GPT, MOE, MLA = map(spec_type, ("gpt", "moe", "mla"))
BYTES = make_tokenizer("bytes", [])
TEXT = "  The don't ,  it 's <s> [PAD]\n\n\tnaïve 中文 \x00\x7f "

# What transformers calls them, as small as can be; sizes that tell the axes apart.
COMMON = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
          "bos_token_id": None, "eos_token_id": None}
GPT2 = {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "bos_token_id": None, "eos_token_id": None}
MIXTRAL = {**COMMON, "num_local_experts": 6, "num_experts_per_tok": 2}
QWEN3_MOE = {**COMMON, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
DEEPSEEK_V2 = {**COMMON, "num_key_value_heads": 4, "first_k_dense_replace": 2, "q_lora_rank": 12,
               "kv_lora_rank": 16, "qk_nope_head_dim": 4, "qk_rope_head_dim": 6, "v_head_dim": 10}
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
MAMBA2 = {"vocab_size": 256, "hidden_size": 32, "num_heads": 6, "head_dim": 16, "expand": 3,
          "state_size": 12, "n_groups": 1, "num_hidden_layers": 2, "bos_token_id": None,
          "eos_token_id": None, "pad_token_id": None}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied-gelu": ("GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 40,
                                  "activation_function": "gelu"}),
    "gpt2-relu2": ("GPT2", {**GPT2, "activation_function": "relu2"}),
    "llama": ("Llama", COMMON),
    "llama-tied-biased": ("Llama", {**COMMON, "tie_word_embeddings": True, "head_dim": 12,
                                    "attention_bias": True, "mlp_bias": True}),
    "llama-theta": ("Llama", {**COMMON, "num_key_value_heads": None, "rms_norm_eps": 1e-3,
                              "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama3": ("Llama", {**COMMON, "head_dim": 32, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
    "qwen3": ("Qwen3", {**COMMON, "head_dim": 12, "tie_word_embeddings": True}),
    "qwen3-window": ("Qwen3", {**COMMON, "head_dim": 8, **WINDOW}),
    "mistral": ("Mistral", {**COMMON, "sliding_window": 6}),
    "mistral-unbounded": ("Mistral", {**COMMON, "sliding_window": None, "head_dim": 6}),
    "mixtral": ("Mixtral", MIXTRAL),
    "mixtral-tied": ("Mixtral", {**MIXTRAL, "tie_word_embeddings": True, "head_dim": 12,
                                 "rms_norm_eps": 1e-3}),
    "qwen3-moe": ("Qwen3Moe", {**QWEN3_MOE, "norm_topk_prob": True}),
    "qwen3-moe-raw": ("Qwen3Moe", {**QWEN3_MOE, "head_dim": 12, "tie_word_embeddings": True}),
    "deepseek-v2": ("DeepseekV2", DEEPSEEK_V2),
    "deepseek-v2-full-q": ("DeepseekV2", {**DEEPSEEK_V2, "q_lora_rank": None,
                                          "tie_word_embeddings": True, "attention_bias": True}),
    "deepseek-v2-all-rotary": ("DeepseekV2", {**DEEPSEEK_V2, "qk_nope_head_dim": 0,
                                              "attention_bias": True}),
    "mamba2": ("Mamba2", MAMBA2),
    "mamba2-groups": ("Mamba2", {**MAMBA2, "n_groups": 2, "tie_word_embeddings": True,
                                 "chunk_size": 5, "time_step_limit": (0.1, 0.8)}),
}

SIZES: dict[str, Any] = {"vocab_size": 256, "n_layer": 2, "n_embd": 32, "n_head": 4, "d_ff": 48,
                         "block_size": 64}
SMALL = {**SIZES, "n_kv_head": 2}
GPT2_FORM = {**SIZES, "d_ff": None, "norm": "layernorm", "pos": "learned", "mlp": "gelu_tanh"}
EXPERTS = {**SMALL, "n_experts": 6, "d_ff": 24}
LATENTS = {**SIZES, "kv_lora_rank": 16, "qk_nope_head_dim": 4, "qk_rope_head_dim": 6,
           "v_head_dim": 10}
OURS: dict[str, Any] = {
    "gpt2": GPT(**GPT2_FORM, bias=True),
    "gpt2-unbiased": GPT(**GPT2_FORM),
    "llama": GPT(**SMALL, tie_embeddings=False, dropout=0.1),
    "llama-biased": GPT(**{**SMALL, "n_kv_head": None}, bias=True, head_dim=12),
    "qwen3": GPT(**SMALL, qk_norm=True, head_dim=12, norm_eps=1e-6, rope_theta=1e6),
    "mistral": GPT(**SMALL, window=6),
    "odd-width": GPT(**{**SMALL, "n_embd": 30}, head_dim=8),
    "mixtral": MOE(**EXPERTS, tie_embeddings=False, router_noise=0.1, aux_loss_coef=0.5),
    "mixtral-tied": MOE(**{**EXPERTS, "n_kv_head": None}, n_experts_per_tok=3, dropout=0.1),
    "qwen3-moe": MOE(**EXPERTS, qk_norm=True, head_dim=12, norm_eps=1e-6, rope_theta=1e6),
    "qwen3-moe-raw": MOE(**EXPERTS, qk_norm=True, norm_topk_prob=False, tie_embeddings=False),
    "deepseek-v2": MLA(**LATENTS, q_lora_rank=12, tie_embeddings=False),
    "deepseek-v2-tied": MLA(**LATENTS, attn_bias=True, rope_theta=500.0, dropout=0.1),
    "deepseek-v2-all-rotary": MLA(**{**LATENTS, "qk_nope_head_dim": 0}, q_lora_rank=12,
                                  attn_bias=True),
}
# What mlx_lm's own classes have not.
OURS_FOR_TRANSFORMERS: dict[str, Any] = {
    "nanogpt": GPT(**{**GPT2_FORM, "mlp": "gelu"}),
    "gpt2-untied": GPT(**{**GPT2_FORM, "d_ff": 48}, tie_embeddings=False, bias=True),
    "gpt2-relu2": GPT(**{**GPT2_FORM, "mlp": "relu2"}),
    "qwen3-window": GPT(**SMALL, qk_norm=True, window=6),
    "mixtral-wide": MOE(**EXPERTS, head_dim=12),
    "mixtral-odd-width": MOE(**{**EXPERTS, "n_embd": 36, "n_head": 8}, head_dim=8),
}


def tokens(B: int = 2, T: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(B, T), dtype=np.int32)


def verdict(spec: Spec, weights: Arrays, data: np.ndarray, first: int = 0) -> Verdict:
    """Our logits and log-probabilities from position `first` on in float64, and how far from them
    float32 may be."""
    torch = load_backend("torch", "cpu")
    subject = Subject(spec, weights, {}, torch)
    assert not hesitations(subject, Case("tokens", Batch(data, data))), "take other tokens"

    def evaluate(aside: Arrays) -> Arrays:
        logits = torch.logits(torch.build(spec, aside, "float64"), data)[:, first:]
        return {"logits": logits, "log_probs": log_probs(logits)}

    return judge(evaluate, weights, 0)


def log_probs(logits: np.ndarray) -> np.ndarray:
    """Of logits (..., V), in float64."""
    above = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return above - np.log(np.exp(above).sum(-1, keepdims=True))


def agrees(found: np.ndarray, truth: Verdict, name: str = "logits") -> bool:
    return distance(found, truth.truth[name]) <= truth.budget[name]


def greedy(backend: str, spec: Spec, weights: Arrays, prompt: np.ndarray, count: int) -> list[int]:
    """Our decoder's likeliest tokens after `prompt`."""
    panel = load_backend(backend, "cpu")
    decoder = panel.decoder(panel.build(spec, weights), 1, len(prompt) + count)
    logits, found = decoder.read(prompt[None]), []
    for _ in range(count):
        found.append(int(logits[0].argmax()))
        logits = decoder.step(np.array(found[-1:], np.int32))
    return found


def save_theirs(name: str, folder: Path, seed: int = 0, **fields: Any) -> Any:
    """A random model of transformers, none of its parameters constant, and our tokenizer."""
    import torch
    import transformers

    kind, config = THEIRS[name]
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(
        getattr(transformers, f"{kind}Config")(**{**config, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(BYTES.to_json(), encoding="utf-8")
    return model


def their_logits(model: Any, data: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(data, dtype=torch.long)).logits.numpy()


def new_run(name: str, spec: Spec, tokenizer: Tokenizer = BYTES) -> RunDir:
    """A run of lively weights that was never trained."""
    settings = Settings(steps=0)

    def fill(folder: Path) -> None:
        checkpoint.save(folder, TrainState(), lively_weights(spec, 0),
                        fresh_state(spec, settings_from(settings.to_dict())), {})

    return RunDir.create(name, spec, settings, "tiny", tokenizer, {}, {}, fill)


def exported(run: RunDir, folder: str | Path, to: str = "hf") -> Path:
    assert export.main(["--run", run.name, "--to", to, str(folder)]) == 0
    return Path(folder)


def adopted(folder: Path, name: str, *options: str) -> RunDir:
    assert adopt.main(["--from", str(folder), "--name", name, "--data", "text.txt", *options]) == 0
    return RunDir.open(name)


def change(file: Path, **values: Any) -> None:
    """Other values in a JSON file; None removes one."""
    content = {**json.loads(file.read_text(encoding="utf-8")), **values}
    file.write_text(json.dumps({key: value for key, value in content.items()
                                if value is not None}), encoding="utf-8")
