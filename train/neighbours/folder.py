"""A folder in upstream's format: config.json, safetensors in one file or several, a tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from specs import UserError
from specs.backend import Arrays
from train.checkpoint import load_arrays, save_arrays
from train.files import new_folder, write_json, write_text
from train.neighbours import Folder

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl")
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
# What a folder knows besides the model; a run that began there keeps it for its export.
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
EXTRAS = ("generation_config.json", *TOKENIZER_FILES)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
KEPT = (*TOKEN_IDS, "max_position_embeddings")  # training windows may be shorter


def read_config(path: Path) -> dict[str, Any]:
    """config.json of the folder. Raises `UserError` if there is none, or of quantized weights."""
    if not path.is_dir():
        raise UserError(f"there is no folder {path}")
    config = read_json(path / "config.json")
    if config.get("quantization_config") or config.get("quantization"):
        raise UserError(f"the weights in {path} are quantized: adopt the model that they were made "
                        "from")
    return config


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing") from None
    except ValueError:
        raise UserError(f"{file} is damaged: it is not JSON") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it is no JSON object")
    return content


def read_tensors(path: Path) -> Arrays:
    """All tensors, of model.safetensors or of the files that its index names. Raises `UserError`
    for a file that is missing or damaged, and for weights in pickles."""
    if (path / WEIGHTS).is_file():
        return load_arrays(path / WEIGHTS)
    if not (path / INDEX).is_file():
        raise UserError(no_safetensors(path))
    places = read_json(path / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in places.values()):
        raise UserError(f"{path / INDEX} is damaged: its weight_map must name files beside it")
    tensors: Arrays = {}
    for name in sorted(set(places.values())):
        if not (path / name).is_file():
            raise UserError(f"{path / name} is missing, which {INDEX} names")
        tensors |= load_arrays(path / name)
    for name, place in places.items():
        if name not in tensors:
            raise UserError(f"{path / place} lacks {name!r}, which {INDEX} places there")
    return tensors


def no_safetensors(path: Path) -> str:
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if not pickles:
        return f"{path} has no {WEIGHTS}"
    return (f"{path} has its weights in a pickle only ({pickles[0]}), which may run any program "
            "when it is opened; if you trust it: python -c 'import sys, transformers as t; "
            "[c.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2]) for c in "
            f"(t.AutoModelForCausalLM, t.AutoTokenizer)]' {path} {path}-safe")


def keep_origin(path: Path, origin: Path) -> None:
    """Copy what an export will need again from the folder at `path` to a new folder `origin`."""
    origin.mkdir()
    for name in ("config.json", *EXTRAS):
        if (path / name).is_file():
            shutil.copyfile(path / name, origin / name)


def write_folder(path: Path, folder: Folder, tokenizer: str, origin: Path) -> None:
    """Write `folder` and the content of a tokenizer.json to `path`, whole or not at all.

    `origin`: where the run keeps what it was adopted with, if it was. Raises `UserError` if there
    is something at `path` already.
    """
    known = read_json(origin / "config.json") if origin.is_dir() else {}
    config = {**folder.config, **dict.fromkeys(TOKEN_IDS),
              **{name: known[name] for name in KEPT if name in known}}
    try:
        with new_folder(path) as aside:
            save_arrays(aside / WEIGHTS, folder.tensors, "pt")
            write_text(aside / "tokenizer.json", tokenizer)
            write_json(aside / "tokenizer_config.json", TOKENIZER)
            for name in EXTRAS:
                if (origin / name).is_file():
                    shutil.copyfile(origin / name, aside / name)
            if folder.model_file is not None:
                shutil.copyfile(folder.model_file, aside / folder.model_file.name)
                config["model_file"] = folder.model_file.name
            write_json(aside / "config.json", config)
    except FileExistsError:
        raise UserError(f"{path} exists and is not empty: choose another folder") from None
