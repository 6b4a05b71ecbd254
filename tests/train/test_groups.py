"""Runs that belong together: their names, and how they are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs import UserError, spec_type
from tests.train.running import end, resume, train
from train.rundir import RUNS, RunDir
from train.settings import Settings
from train.tokenizer import make_tokenizer

SPEC = spec_type("gpt").preset("tiny", vocab_size=256)
pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.needs("torch")]


def test_a_run_in_a_folder_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run = train("--steps", "4", name="many/one")
    assert run.path == RUNS / "many" / "one" and run.name == "many/one"
    assert "--run many/one" in capsys.readouterr().err
    assert resume("many/one", "torch", "--steps", "8") == 0 and run.steps()[-1] == 8
    assert RunDir.open(Path("runs/many/one")).name == "many/one"
    code, said = end("--resume", "many/two", "--backend", "torch", capsys=capsys)
    assert code == 2 and "There are: many/one" in said
    with pytest.raises(UserError, match="go on with it by --resume many/one, or choose another"):
        train("--steps", "4", name="many/one")


@pytest.mark.parametrize("name", ["a/b/c", "a/", "/a", "a/../b", "a/.b", "_a"])
def test_names_that_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("train.run.prepare")  # which may take minutes, for nothing
    with pytest.raises(UserError, match="GROUP/NAME for one of many"):
        train("--steps", "1", name=name)


@pytest.mark.parametrize("options, message", [
    (["--arch", "bhd"], "did you mean 'bdh'"), (["--preset", "tinny"], "did you mean 'tiny'"),
    (["--name", "known"], "choose another --name")], ids=["arch", "preset", "name"])
def test_what_is_wrong_is_told_before_the_text_is_read(
        options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("train.run.prepare")
    (RUNS / "known").mkdir(parents=True)
    (RUNS / "known" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        train(*options)


def test_two_runs_that_begin_together_have_names_of_their_own() -> None:
    def fill(folder: Path) -> None:
        (RUNS / "gpt-tiny" / "of-the-other").mkdir(parents=True, exist_ok=True)

    run = RunDir.create(None, SPEC, Settings(), "tiny", make_tokenizer("bytes", []), {}, {}, fill)
    assert run.name == "gpt-tiny-2" and run.spec == SPEC
