"""Runs that belong together: their names, and how they are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs import UserError
from tests.train.running import end, resume, train
from train.rundir import RUNS, RunDir

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


@pytest.mark.parametrize("name", ["a/b/c", "a/", "/a", "a/../b", "a/.b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError, match="GROUP/NAME for one of many"):
        train("--steps", "1", name=name)
