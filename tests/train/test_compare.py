"""Runs on top of each other: the figures, the command, the page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from specs import spec_type
from specs.errors import UserError
from tests.train.running import ROOT
from train import compare as command
from train import overlay, page
from train.curves import AXES, COLUMNS, Curve, cells, measure, read_history, remarks
from train.rundir import RunDir
from train.settings import Settings
from train.tokenizer import Tokenizer, make_tokenizer

pytestmark = pytest.mark.usefixtures("here")
SPEC = spec_type("gpt").preset("tiny", vocab_size=300)
BYTES = make_tokenizer("bytes", [])
WORDS = make_tokenizer("bpe:257", ["a b c"])


def made(name: str, settings: Settings | None = None, tokenizer: Tokenizer = BYTES,
         steps: int = 20, fingerprint: str = "a") -> str:
    """A run directory with made-up metrics: every second step logged, every fourth evaluated."""
    settings = settings or Settings(batch_size=4, steps=steps)
    run = RunDir.create(name, SPEC, settings, "tiny", tokenizer, {"fingerprint": fingerprint},
                        {"chip": "abacus"}, lambda folder: None)
    lines = []
    for step in range(2, steps + 1, 2):
        loss = 6 / step
        lines.append({"step": step, "tokens": 0, "elapsed": 3.0 * step, "loss": loss,
                      "bpb": loss / 2, "tokens_per_s": 100.0 * step, "mfu": 0.25})
        if step % 4 == 0:
            lines.append({"step": step, "elapsed": 3.0 * step + 1, "val_loss": loss + 0.1,
                          "val_bpb": loss})
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def test_the_axes_of_a_run() -> None:
    history = read_history(made("a"))
    x = {axis: history.curve("loss", axis).x for axis in AXES}
    steps = np.arange(2, 21, 2)
    assert x["steps"].tolist() == steps.tolist()
    assert x["tokens"].tolist() == (4 * SPEC.block_size * steps).tolist()
    assert x["time"].tolist() == (3.0 * steps).tolist()
    cost = 3 * SPEC.flops_per_token(SPEC.block_size)
    np.testing.assert_allclose(x["FLOPs"], cost * x["tokens"])
    assert history.curve("val_loss").x.tolist() == [4, 8, 12, 16, 20]
    assert history.best("val_loss") == (20, pytest.approx(0.4))


def test_windows_that_grow_are_counted_as_they_were() -> None:
    settings = Settings(batch_size=2, steps=20, seq_curriculum=(160, SPEC.block_size))
    history = read_history(made("a", settings))
    for step in (0, 5, 6, 20):
        assert history.tokens_by_step[step] == settings.tokens_until(step, SPEC.block_size)
    first = 2 * 160 * 3 * SPEC.flops_per_token(160)
    np.testing.assert_allclose(history.flops_by_step[:3], [0, first, 2 * first])
    last = 2 * 640 * 3 * SPEC.flops_per_token(640)
    np.testing.assert_allclose(np.diff(history.flops_by_step)[-1], last)


def test_smoothing_begins_at_the_first_value_and_keeps_a_constant() -> None:
    x = np.arange(3)
    assert Curve(x, np.array([5.0, 5.0, 5.0])).smoothed(0.9).y.tolist() == pytest.approx([5, 5, 5])
    smooth = Curve(x, np.array([4.0, 1.0, 1.0])).smoothed(0.5).y
    assert smooth.tolist() == pytest.approx([4, 2, 10 / 7])
    assert Curve(x, np.array([4.0, 1.0, 1.0])).smoothed(0).y.tolist() == [4, 1, 1]


def test_what_is_compared_and_what_is_said_of_it() -> None:
    one, same = read_history(made("a")), read_history(made("b"))
    assert measure([one, same]) == ({"loss": "training", "val_loss": "validation"},
                                    "nats per token")
    assert remarks([one, same]) == []
    other = read_history(made("c", tokenizer=WORDS, fingerprint="b"))
    assert measure([one, other])[1] == "bits per byte"
    assert ["tokenizers" in remark for remark in remarks([one, other])] == [True, False]


def test_the_row_of_a_run() -> None:
    history = read_history(made("a"))
    row = dict(zip(COLUMNS, cells(history, [history], 0.0), strict=True))
    assert row["run"] == "a" and row["arch"] == "gpt" and row["steps"] == "20"
    assert row["time"] == "1:01" and row["train loss"] == "0.3000"
    assert row["best val. loss"] == "0.4000" and row["at step"] == "20"
    assert row["tok/s"] == "2k" and row["MFU"] == "25%"


def test_a_run_without_validation_has_a_row() -> None:
    run = RunDir.open(made("a", steps=2))
    history = read_history(run.name)
    assert cells(history, [history], 0.6)[8:10] == ["-", "-"]
    assert overlay.picture([history], 0.6, "png")


def test_runs_that_have_nothing_in_common_have_rows(capsys: pytest.CaptureFixture[str]) -> None:
    made("a", steps=2)  # which ended before its first validation
    RunDir.open(made("b")).metrics.write_text('{"step": 4, "elapsed": 1, "val_loss": 2}\n')
    assert command.main(["a", "b"]) == 0
    assert capsys.readouterr().out.count("gpt") == 2


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    made("a")
    made("b", Settings(batch_size=8, steps=20))
    assert command.main(["a", "runs/b", "runs/a", "--against", "FLOPs", "--html", "c.html"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("runs/compare.png, c.html\n") and "against FLOPs" in out
    assert out.count("gpt") == 2 and all(len(line) <= 80 for line in out.splitlines()[:4])
    assert Path("runs/compare.png").read_bytes().startswith(b"\x89PNG")


class Reader(HTMLParser):
    """Which tags a page has, whether they are closed, and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.refers: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "xlink:href"):
                self.refers.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_the_page_stands_alone() -> None:
    names = [made("a"), made("b")]
    histories = [read_history(name) for name in names]
    histories[1] = type(histories[1])(**{**vars(histories[1]), "name": "<b>&"})
    text = page.html(histories, 0.6)
    reader = Reader(text)
    assert not reader.open and reader.tags.count("svg") == 4
    assert not {"script", "link", "img", "b"} & set(reader.tags)
    assert {"caption", "h1", "main", "title"} <= set(reader.tags)
    assert all(target.startswith("#") for target in reader.refers)
    assert {target[1:] for target in reader.refers} <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    assert "&lt;b&gt;&amp;" in text and "prefers-color-scheme: dark" in text
    assert not re.search(r"url\((?!#)", text) and overlay.INK not in text
    assert "currentColor" in text and "#000000" not in text
    for axis in AXES:
        assert f'aria-label="Loss against {axis}"' in text


def luminance(colour: str) -> float:
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
              for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("ground", re.findall(r"--ground: (#\w+)", page.STYLE))
def test_every_line_can_be_seen(ground: str) -> None:
    for colour in overlay.COLOURS:
        dark, light = sorted(luminance(each) + 0.05 for each in (colour, ground))
        assert light / dark >= 4  # WCAG 2.2 asks 3 of graphics


@pytest.mark.parametrize(("options", "message"), [
    (["nothing"], "no run 'nothing'. There are: a, empty"),
    (["empty"], "empty has measured no loss yet"),
    (["a", "--smooth", "1"], "--smooth 1.0 must be from 0"),
    (["a", "--smooth", "-1"], "--smooth -1.0 must be from 0"),
    (["a", "--html", "page.txt"], "--html page.txt must end in .html or .htm"),
    (["a", "--out", "picture"], "--out picture must end in .png or .svg or .pdf"),
], ids=str)
def test_bad_input(options: list[str], message: str) -> None:
    made("a")
    made("empty", steps=0)
    with pytest.raises(UserError, match=re.escape(message)):
        command.main(options)
    assert not Path("runs/compare.png").exists()


def test_a_mistake_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, ROOT / "train" / "compare.py", "no"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no run 'no'")
    assert done.stderr.count("\n") == 1
