"""A text that is put aside and gone on with, on either backend, is the text that it would have
been; a file that does not fit is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from generate import run as command
from generate.memory import Memory, checksum, digest, read_memory, write_memory
from generate.sampling import Sampler
from generate.text import write
from specs import UserError, init_weights, spec_type
from specs.backend import BACKENDS, load_backend
from tests.train.neighbourhood import BYTES, new_run
from train.tokenizer import Tokenizer


def ascii_alone() -> Tokenizer:
    """A text in it may be cut anywhere."""
    content = json.loads(BYTES.to_json())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {name: byte for name, byte in vocab.items() if byte < 128}
    return Tokenizer.from_json(json.dumps(content))


ASCII = ascii_alone()
BDH = spec_type("bdh").preset("tiny", vocab_size=128, n_embd=16, block_size=64)
RETNET = spec_type("retnet").preset("tiny", vocab_size=128, block_size=64, tie_embeddings=False)
FILE = Path("text.state")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(backend: str, spec: Any, prompt: str, count: int, memory: Memory | None = None) -> str:
    panel = load_backend(backend, "cpu")
    model = panel.build(spec, {name: 4 * w for name, w in init_weights(spec).items()})
    pieces = write(panel, model, ASCII, [prompt], Sampler(seed=5), count, memory=memory)
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("spec, kind", [(BDH, "cache"), (BDH, "recurrent"), (RETNET, "recurrent")],
                         ids=["bdh-cache", "bdh-recurrent", "retnet"])
@pytest.mark.parametrize("first", BACKENDS)
@pytest.mark.parametrize("second", BACKENDS)
@pytest.mark.needs(*BACKENDS)
def test_the_text_goes_on_as_if_never_stopped(spec: Any, kind: str, first: str,
                                              second: str) -> None:
    memory = Memory(kind)
    text = written(first, spec, "Once", 25, memory)
    assert memory.read == 28 and len(memory.tokens) == 29
    write_memory(FILE, memory, "mine")
    memory = read_memory(FILE, "mine")
    text += written(second, spec, "", 25, memory)
    assert text == written("torch", spec, "Once", 50)
    write_memory(FILE, memory, "mine")
    more = written(first, spec, " more", 9, read_memory(FILE, "mine"))
    assert len(set(text)) > 12 and more == written(first, spec, f"Once{text} more", 9)


def generate(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["generate/run.py", "--device", "cpu", *arguments])
    return command.main()


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    new_run("a", RETNET, ASCII)
    options = ["--run", "a", "--temperature", "0.5", "--max-tokens"]
    assert generate(monkeypatch, *options, "20", "--prompt", "So ", "--save-state", str(FILE)) == 0
    out, err = capsys.readouterr()
    assert "text.state: 22 tokens of this text are remembered" in err
    assert generate(monkeypatch, *options, "10", "--load-state", str(FILE), "--save-state",
                    str(FILE)) == 0
    more, err = capsys.readouterr()
    assert "(1 read," in err and "text.state: 32 tokens" in err
    generate(monkeypatch, *options, "30", "--prompt", "So ")
    assert capsys.readouterr().out == out.removesuffix("\n") + more
    assert not list(Path().glob(".*"))


@pytest.mark.parametrize("options, message", [
    (["--load-state", "none"], "there is no file none"),
    (["--save-state", "no/such"], "--save-state no/such must be a file in a folder that is there"),
    (["--save-state", "runs"], "--save-state runs must be a file in a folder that is there"),
    (["--save-state", "b", "--prompt", "a", "b"], "a memory is of one text, not of 2"),
    (["--load-state", str(FILE), "--run", "b"], "text.state was saved by another model"),
    (["--load-state", str(FILE), "--state", "cache"], "holds the state 'recurrent'"),
], ids=str)
def test_bad_options(options: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
                     capsys: pytest.CaptureFixture) -> None:
    new_run("a", BDH, ASCII)
    new_run("b", BDH.replace(dropout=0.1), ASCII)
    generate(monkeypatch, "--run", "a", "--max-tokens", "3", "--save-state", str(FILE))
    capsys.readouterr()
    with pytest.raises(UserError, match=re.escape(message)):
        generate(monkeypatch, "--run", "a", *options)
    assert capsys.readouterr().out == ""


def test_a_damaged_file_is_refused_in_one_line() -> None:
    memory = Memory("recurrent")
    written("torch", RETNET, "Once", 5, memory)
    write_memory(FILE, memory, "mine")
    content, arrays = FILE.read_bytes(), load_file(FILE)
    for name, bad in {"truncated": content[:-9], "text": b"so it was", "empty": b"",
                      "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]}.items():
        FILE.write_bytes(bad)
        with pytest.raises(UserError, match="text.state is damaged") as caught:
            read_memory(FILE, "mine")
        assert "\n" not in str(caught.value), name
    half = b'{"half":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'  # no type of numpy's
    for other in (save(arrays), len(half).to_bytes(8, "little") + half + b"12"):
        FILE.write_bytes(other)
        with pytest.raises(UserError, match="is no memory that this version"):
            read_memory(FILE, "mine")


def test_a_model_is_known_by_fields_and_weights() -> None:
    weights = init_weights(RETNET)
    other = {name: w + np.float32(1e-7) * (name == "norm.weight") for name, w in weights.items()}
    assert digest(RETNET, weights) == digest(RETNET, dict(reversed(weights.items())))
    assert len({digest(RETNET, weights), digest(RETNET, other), digest(
        RETNET.replace(block_size=65), weights)}) == 3
    assert checksum({"a": np.zeros(2)}) != checksum({"a": np.zeros((1, 2))})
