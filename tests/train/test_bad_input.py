"""Bad input ends with exit code 2 and one line that says what is wrong; nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specs import main_exit
from train import run as command

NEW = ["--arch", "bdh", "--preset", "tiny", "--set", "vocab_size=256", "--block-size", "16",
       "--data", "text.txt", "--steps", "1"]
CASES = {
    "no-arch": ([], "say what to train"),
    "unknown-arch": (["--arch", "bhd"], "did you mean 'bdh'"),
    "unknown-preset": (["--arch", "bdh", "--preset", "25M"], "did you mean '25m'"),
    "unknown-backend": ([*NEW, "--backend", "jax"], "no backend 'jax'"),
    "no-such-device": ([*NEW, "--backend", "torch", "--device", "cuda:9"], "no device 'cuda:9'"),
    "mlx-device": ([*NEW, "--backend", "mlx", "--device", "tpu"], "no device 'tpu'"),
    "unknown-field": ([*NEW, "--set", "n_layers=2"], "did you mean 'n_layer'"),
    "wrong-type": ([*NEW, "--set", "n_layer=two"], "n_layer = 'two' must be a whole number"),
    "impossible-size": ([*NEW, "--set", "n_head=3"], "mlp_internal_dim_multiplier"),
    "impossible-width": ([*NEW, "--set", "n_embd=1000000000000000000"],
                         "not enough memory (array is too big"),
    "not-a-field": ([*NEW, "--set", "n_layer"], "must be FIELD=VALUE"),
    "small-vocabulary": ([*NEW, "--set", "vocab_size=64"], "too small for the tokenizer"),
    "nameless-run": (["--resume", ""], "no run ''"),
    "nameless-data": (["--arch", "bdh", "--data", ""], "--data is empty"),
    "nobody-s-data": (["--arch", "bdh", "--data", "~nobody-here/x.txt"], "no such home folder"),
    "nobody-s-tokenizer": ([*NEW, "--tokenizer", "~nobody-here/t.json"], "no such home folder"),
    "missing-data": (["--arch", "bdh", "--data", "nowhere.txt"], "nowhere.txt"),
    "empty-data": (["--arch", "bdh", "--data", "empty.txt"], "no text"),
    "binary-data": (["--arch", "bdh", "--data", "binary.bin"], "binary.bin"),
    "column-of-text": ([*NEW, "--text-column", "body"], "plain text, --text-column body"),
    "split-of-text": ([*NEW, "--data-split", "test"], "plain text, --data-split test"),
    "split-of-builtin": (["--arch", "bdh", "--data-split", "test"], "builtin is plain text"),
    "short-data": ([*NEW, "--block-size", "4000"], "lower --block-size"),
    "unknown-tokenizer": ([*NEW, "--tokenizer", "gpt2"], "no tokenizer 'gpt2'"),
    "foreign-tokenizer": ([*NEW, "--tokenizer", "text.txt"], "tokenizer.json"),
    "small-bpe": ([*NEW, "--tokenizer", "bpe:12"], "at least 257"),
    "endless-bpe": ([*NEW, "--tokenizer", f"bpe:{'9' * 20}"], "below ten million"),
    "two-words": ([*NEW, "--tokenizer", "words.json"], "this tokenizer cannot say the text"),
    "two-bounds": ([*NEW, "--minutes", "1"], "both bound the run"),
    "bad-batch": ([*NEW, "--batch-size", "0"], "--batch-size 0 must be at least 1"),
    "endless-tokens": ([*NEW[:-2], "--tokens", "9" * 400], "must be a number such as 500k"),
    "more-tokens": ([*NEW[:-2], "--tokens", "99999999999999999999B"], "at most 1e+15"),
    "bad-micro": ([*NEW, "--batch-size", "4", "--micro-batch", "8"], "at most the batch size"),
    "bad-lr": ([*NEW, "--lr", "-1"], "--lr -1.0 must be positive"),
    "bad-beta": ([*NEW, "--beta2", "1"], "--beta2 1.0 must be at least 0 and below 1"),
    "bad-name": ([*NEW, "--name", "../up"], "must be at most 100 letters"),
    "missing-init": ([*NEW, "--init", "no.safetensors"], "no.safetensors"),
    "foreign-init": ([*NEW, "--init", "text.txt"], "no safetensors file"),
    "unknown-run": (["--resume", "nothing"], "no run 'nothing'"),
    "little-memory": ([*NEW, "--memory", "0.25MB", "--backend", "mlx"], "more than --memory"),
    "typo": ([*NEW, "--stepz", "1"], "unrecognized arguments"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be or not to be, that is the question. " * 100)
    Path("empty.txt").write_text(" \n")
    Path("words.json").write_text(json.dumps({"model": {
        "type": "WordLevel", "vocab": {"to": 0, "be": 1}, "unk_token": "?"}}))
    Path("binary.bin").write_bytes(bytes(range(256)) * 100)


NEEDS = {"no-such-device": "torch", "mlx-device": "mlx", "little-memory": "mlx"}


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=[pytest.mark.needs(NEEDS[case])] if case in NEEDS else [])
    for case in CASES])
def test_one_line_and_exit_code_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = CASES[case]
    with pytest.raises(SystemExit) as stop:
        main_exit(lambda: command.main(arguments))
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in said and "Traceback" not in said
    if case not in ("typo", "endless-tokens", "more-tokens"):  # argparse shows the usage first
        assert said.strip().splitlines()[-1].startswith("error: ")
    if case != "little-memory":
        assert not list(Path().glob("runs/*/step-*"))


@pytest.mark.parametrize("change, message", [
    (["--lr", "0.1"], "has done its 1 steps"),
    (["--steps", "5", "--seed", "3"], "--seed cannot change"),
    (["--steps", "5", "--batch-size", "2"], "--batch-size cannot change"),
    (["--steps", "5", "--set", "n_layer=9"], "--set cannot change"),
    (["--minutes", "5"], "bounded by --steps"),
], ids=["done", "seed", "batch", "set", "bound"])
def test_a_run_that_goes_on_stays_the_same_run(change: list[str], message: str,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*NEW, "--name", "a"]) == 0
    with pytest.raises(SystemExit) as stop:
        main_exit(lambda: command.main(["--resume", "a", *change]))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.needs("torch")
def test_python_needs_nothing_of_the_missing_backend(monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "mlx" else find(name, *rest))
    with pytest.raises(SystemExit) as stop:
        main_exit(lambda: command.main([*NEW, "--backend", "mlx"]))
    assert stop.value.code == 2
    assert "mlx is not installed here: pip install -e '.[mlx]', or use --backend torch" in (
        capsys.readouterr().err)
