"""What of a run may be changed when it goes on."""

from __future__ import annotations

from typing import Any

import pytest

from specs import spec_type
from specs.errors import UserError
from train import checkpoint
from train.options import parser, resumed_settings
from train.rundir import RunDir
from train.settings import Settings
from train.tokenizer import make_tokenizer

pytestmark = pytest.mark.usefixtures("here")
SPEC = spec_type("gpt").preset("tiny", block_size=16)
GROWS = {"steps": 100, "seq_curriculum": (4, 16)}


def resumed(settings: dict[str, Any], step: int, *words: str) -> Settings:
    """What becomes of a run with these settings that stands at `step`."""
    run = RunDir.create("a", SPEC, Settings(**settings), "tiny", make_tokenizer("bytes", []), {},
                        {}, lambda folder: checkpoint.folder(folder, step).mkdir())
    return resumed_settings(parser().parse_args(["--resume", "a", *words]), run)


@pytest.mark.parametrize("settings, words, message", [
    (GROWS, ["--steps", "400"], "--steps cannot change: windows grow over this run's 100 steps"),
    (GROWS, ["--tokens", "1M"], "--tokens cannot change"),
    (GROWS, ["--minutes", "5"], "--seq-curriculum goes by steps"),
    ({"steps": 100}, ["--minutes", "5"], "bounded by --steps: give a larger --steps"),
    ({"minutes": 5}, ["--tokens", "1M"], "bounded by --minutes: give a larger --minutes"),
], ids=["grows-steps", "grows-tokens", "grows-minutes", "steps-minutes", "minutes-tokens"])
def test_what_bounds_a_run_stays(settings: dict[str, Any], words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resumed(settings, 8, *words)


def test_windows_that_grow_let_the_rest_change() -> None:
    assert resumed(GROWS, 8, "--steps", "100", "--lr", "1") == Settings(**GROWS, lr=1.0)


@pytest.mark.parametrize("settings, words, bound", [
    ({"steps": 0}, ["--minutes", "5"], (None, 5.0)),
    ({"minutes": 5}, ["--tokens", "4k"], (16, None)),
    (GROWS, ["--steps", "400"], (400, None)),
], ids=["minutes", "tokens", "grows"])
def test_a_run_that_has_not_begun_may_be_bounded_anew(
        settings: dict[str, Any], words: list[str], bound: tuple[int | None, float | None]) -> None:
    found = resumed(settings, 0, *words)
    assert (found.steps, found.minutes) == bound
