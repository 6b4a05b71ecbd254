"""The command, on a run directory with untrained weights."""

import re
import subprocess
import sys

import pytest

from generate import run as command
from specs import UserError
from specs.backend import available_backends
from train.tokenizer import make_tokenizer


def generate(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["generate/run.py", *arguments])
    return command.main()


@pytest.mark.parametrize("backend", available_backends())
def test_text_on_stdout_remarks_on_stderr(tiny, monkeypatch, capsys, backend):
    options = ["--run", "tiny", "--prompt", "One", "Another", "--max-tokens", "9",
               "--backend", backend, "--device", "cpu", "--temperature", "0.1"]
    assert generate(monkeypatch, *options) == 0
    out, err = capsys.readouterr()
    first, second = out.split("\n\nAnother")
    assert first.startswith("One") and len(first) > 3 and len(second) > 1
    assert re.search(rf"tiny on {backend} \(cpu, float32\): first token after .* s "
                     r"\(6 read, .* tokens/s\), then 17 at .* tokens/s\n", err)
    generate(monkeypatch, *options, "--step", "20")
    assert capsys.readouterr().out == out
    generate(monkeypatch, *options, "--step", "10")
    assert capsys.readouterr().out != out


@pytest.mark.parametrize(("options", "message"), [
    (["--run", "tinny"], "no run 'tinny'; did you mean 'tiny'"),
    (["--run", "tiny", "--step", "15"], "no checkpoint at step 15; it has: 10, 20"),
    (["--run", "tiny", "--top-p", "7"], "--top-p 7.0 must be above 0"),
    (["--run", "tiny", "--state", "paper"], "cannot decode with the state 'paper'"),
    (["--run", "tiny", "--backend", "jax"], "no backend 'jax'"),
    (["--run", "tiny", "--max-tokens", "0"], "--max-tokens 0 must be"),
    (["--run", "tiny", "--mode", "batch"], "give --prompts-file FILE (or --prompt) and --out"),
    (["--run", "tiny", "--out", "x.jsonl"], "give --prompts-file FILE (or --prompt) and --out"),
    (["--run", "tiny", "--mode", "interactive"], "--mode interactive needs a terminal"),
    (["--run", "tiny", "--prompt", "a", "--out", "x", "--load-state", "y"], "--out goes with"),
], ids=str)
def test_bad_options(tiny, monkeypatch, capsys, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        generate(monkeypatch, *options)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("content", "message"), [
    (lambda: make_tokenizer("bpe:300", ["to be or not to be " * 9]).to_json().encode(),
     "runs/tiny/tokenizer.json is another model's: it has"),
    (lambda: b"\xff\xfe", "runs/tiny/tokenizer.json: this is no tokenizer.json"),
], ids=["larger", "binary"])
def test_a_tokenizer_that_is_not_the_runs_is_refused(tiny, monkeypatch, content, message):
    (tiny.path / "tokenizer.json").write_bytes(content())
    with pytest.raises(UserError, match=message):
        generate(monkeypatch, "--run", "tiny", "--prompt", "a")


def test_a_mistake_is_one_line_and_exit_code_2(tiny):
    script = command.__file__
    result = subprocess.run([sys.executable, script, "--run", "nothing"], capture_output=True,
                            text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: no run 'nothing'") and result.stderr.count("\n") == 1


def test_help_shows_examples(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        generate(monkeypatch, "--help")
    out = capsys.readouterr().out
    assert "python generate/run.py --run bdh-demo --prompt" in out
    assert all(len(line) <= 100 for line in out.splitlines())
