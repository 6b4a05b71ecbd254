"""Prompts from a file, results to a file: through the command."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from generate import batch
from generate import run as command
from generate.batch import read_prompts
from specs import UserError
from specs.backend import available_backends

PROMPTS = ["One", "  indented", "naïve 😀", "One", "the last"]
OPTIONS = ["--run", "tiny", "--prompts-file", "many.txt", "--out", "results.jsonl",
           "--max-tokens", "6", "--device", "cpu", "--batch-size", "2", "--mode", "batch"]
OUT = Path("results.jsonl")


@pytest.fixture(autouse=True)
def many(tiny):
    Path("many.txt").write_text("\n\n".join(PROMPTS), encoding="utf-8")


def generate(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["generate/run.py", *arguments])
    return command.main()


def rows():
    return [json.loads(line) for line in OUT.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("backend", available_backends())
def test_every_prompt_has_a_result(monkeypatch, capsys, backend):
    assert generate(monkeypatch, *OPTIONS, "--backend", backend) == 0
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("results.jsonl: 5 texts, 5 of them new\n")
    assert re.search(r"2/5 texts  [\d,]+ tokens/s  ETA 0:\d\d\n", err)
    assert [row["prompt"] for row in rows()] == PROMPTS
    first = rows()[0]
    assert (first["finish"], first["tokens"]) == ("length", 6)
    assert first["text"] == rows()[3]["text"]
    assert {"run": "tiny", "step": 20, "temperature": 0.8, "seed": 0, "max_tokens": 6,
            "stop": []}.items() <= first.items()
    generate(monkeypatch, "--run", "tiny", "--prompt", "One", "--max-tokens", "6",
             "--backend", backend)
    assert capsys.readouterr().out == f"One{first['text']}\n"


def test_it_goes_on_where_it_was_stopped(monkeypatch, capsys):
    generate(monkeypatch, *OPTIONS)
    whole = OUT.read_bytes()
    for end in (0, 5, whole.index(b"\n") + 1, len(whole) - 30, len(whole) - 1):
        OUT.write_bytes(whole[:end])
        generate(monkeypatch, *OPTIONS)
        assert OUT.read_bytes() == whole
    capsys.readouterr()
    generate(monkeypatch, *OPTIONS)
    assert OUT.read_bytes() == whole
    assert capsys.readouterr().err == "results.jsonl: 5 texts, 0 of them new\n"


def test_ctrl_c_keeps_the_batches_that_are_done(monkeypatch, capsys):
    texts, calls = batch._texts, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return texts(*arguments)

    monkeypatch.setattr(batch, "_texts", stop)
    assert generate(monkeypatch, *OPTIONS) == 130
    assert "the same command goes on where results.jsonl ends" in capsys.readouterr().err
    assert len(rows()) == 2


@pytest.mark.parametrize(("content", "changed", "message"), [
    (None, ["--seed", "2"], "results.jsonl holds other results, line 1 with another seed"),
    (None, ["--step", "10"], "line 1 with another step"),
    (None, ["--dtype", "bfloat16"], "line 1 with another dtype"),
    ("a prompt\nanother\n", [], "results.jsonl holds something else than results"),
    ("one prompt", [], "results.jsonl holds something else than results"),
    ("[]", [], "results.jsonl holds something else than results"),
], ids=["seed", "step", "dtype", "lines", "line", "list"])
def test_other_results_are_left_alone(monkeypatch, content, changed, message):
    generate(monkeypatch, *OPTIONS)
    if content is not None:
        OUT.write_text(content)
    before = OUT.read_bytes()
    with pytest.raises(UserError, match=message):
        generate(monkeypatch, *OPTIONS, *changed)
    assert OUT.read_bytes() == before


@pytest.mark.parametrize(("name", "content", "message"), [
    ("none.txt", None, "there is no file none.txt"),
    ("empty.txt", b" \n\n", "empty.txt holds no prompt"),
    ("latin.txt", b"na\xefve", "latin.txt is not UTF-8 text"),
    ("bad.jsonl", b'"good"\n{"text": 1}', 'bad.jsonl line 2 must be {"prompt": "TEXT"} or "TEXT"'),
    ("bad.jsonl", b"not json", "bad.jsonl line 1 must be"),
    ("deep.jsonl", b"[" * 100_000, "deep.jsonl line 1 must be"),
], ids=lambda value: str(value)[:40])
def test_bad_prompts(name, content, message):
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_prompts(Path(name))


def test_a_byte_order_mark_is_no_part_of_a_prompt():
    Path("marked.txt").write_text("One", encoding="utf-8-sig")
    Path("marked.jsonl").write_text('"One"', encoding="utf-8-sig")
    assert read_prompts(Path("marked.txt")) == read_prompts(Path("marked.jsonl")) == ["One"]


def test_an_empty_prompt_stands_for_a_line_break(monkeypatch):
    Path("many.jsonl").write_text('{"prompt": ""}\n"\\n"')
    generate(monkeypatch, *OPTIONS, "--prompts-file", "many.jsonl")
    assert rows()[0]["text"] == rows()[1]["text"]


def test_out_may_be_a_link_and_must_be_a_file(monkeypatch):
    OUT.symlink_to("elsewhere.jsonl")
    generate(monkeypatch, *OPTIONS)
    generate(monkeypatch, *OPTIONS)
    assert OUT.is_symlink() and len(Path("elsewhere.jsonl").read_text().splitlines()) == 5
    os.mkfifo("pipe")
    with pytest.raises(UserError, match="--out pipe must be a file"):
        generate(monkeypatch, *OPTIONS, "--out", "pipe")


def test_prompts_of_several_lines():
    Path("many.jsonl").write_text('{"prompt": "a\\nb", "id": 7}\r\n"c\u2028d"\n', "utf-8")
    assert read_prompts(Path("many.jsonl")) == ["a\nb", "c\u2028d"]


@pytest.mark.parametrize(("options", "message"), [
    (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
    (["--out", "no/where.jsonl"], "must be a file in a folder that is there"),
], ids=str)
def test_bad_options(monkeypatch, options, message):
    with pytest.raises(UserError, match=message):
        generate(monkeypatch, *OPTIONS, *options)


def test_a_prompt_that_cannot_be_read_is_named_before_the_first_text(monkeypatch):
    Path("many.jsonl").write_text('"good"\n"\\ud800"\n')
    options = [*OPTIONS, "--prompts-file", "many.jsonl"]
    with pytest.raises(UserError, match="prompt 2: the text holds half a character"):
        generate(monkeypatch, *options)
    assert not OUT.exists()
