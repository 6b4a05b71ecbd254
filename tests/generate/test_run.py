"""The command, on a run directory with untrained weights."""

import re
import subprocess
import sys

import pytest

from generate import run as command
from generate.text import Piece
from specs import UserError, init_weights, spec_type
from specs.backend import available_backends
from train import checkpoint
from train.rundir import RunDir
from train.settings import Settings
from train.tokenizer import make_tokenizer


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """runs/tiny below the current folder, with checkpoints at steps 10 and 20."""
    monkeypatch.chdir(tmp_path)
    spec = spec_type("bdh").preset("demo", n_layer=1, n_embd=8, mlp_internal_dim_multiplier=4)
    run = RunDir.create("tiny", spec, Settings(), "demo", make_tokenizer("bytes", []), {}, {},
                        lambda folder: None)
    for step in (10, 20):
        weights = init_weights(spec, step)
        checkpoint.save(run.path, checkpoint.TrainState(step=step), weights, {}, {})
    return run


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
], ids=str)
def test_bad_options(tiny, monkeypatch, capsys, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        generate(monkeypatch, *options)
    assert capsys.readouterr().out == ""


def test_a_mistake_is_one_line_and_exit_code_2(tiny):
    script = command.__file__
    result = subprocess.run([sys.executable, script, "--run", "nothing"], capture_output=True,
                            text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: no run 'nothing'") and result.stderr.count("\n") == 1


def test_the_second_text_follows_the_first(capsys):
    pieces = [Piece(1, "B"), Piece(0, "a"), Piece(1, "b", "stop"), Piece(0, "aa", "length")]
    seen = []

    def grow():
        for piece in pieces:
            seen.append(capsys.readouterr().out)
            yield piece

    assert command.show(["> ", "2> "], grow())
    assert [*seen, capsys.readouterr().out] == ["> ", "", "a", "", "aa\n\n2> Bb\n"]


def test_ctrl_c_ends_all_texts_where_they_are(capsys):
    def grow():
        yield from [Piece(0, "a"), Piece(1, "b")]
        raise KeyboardInterrupt

    assert not command.show(["> ", "2> "], grow())
    assert capsys.readouterr().out == "> a\n\n2> b\n"


def test_help_shows_examples(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        generate(monkeypatch, "--help")
    out = capsys.readouterr().out
    assert "python generate/run.py --run bdh-demo --prompt" in out
    assert all(len(line) <= 100 for line in out.splitlines())
