import re

import datasets
import huggingface_hub
import pytest

from specs.errors import UserError
from train.data import prepare
from train.sources import texts


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def test_builtin_is_real_text_and_always_the_same():
    text = "".join(texts("builtin"))
    assert len(text) > 300_000
    assert 'The "assert" statement' in text
    assert text == "".join(texts("builtin"))


def test_builtin_tail_repeats_nothing_of_its_beginning():
    text = "".join(texts("builtin"))
    cut = int(len(text) * 0.9)
    seen = set(text[:cut].splitlines())
    lines = [line for line in text[cut:].splitlines() if len(line) > 30]
    assert sum(line in seen for line in lines) < 0.03 * len(lines)


def test_builtin_source_is_some_megabytes_of_sorted_files():
    text = "".join(texts("builtin-source"))
    assert len(text) > 2_000_000
    assert text.index('"""Abstract Base Classes') < text.index("class ArgumentParser")
    assert "class TestCase" in text and "site-packages" + "/numpy" not in text


def test_a_file_keeps_its_characters(tmp_path):
    path = tmp_path / "mixed"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\xc3\xa9")
    assert "".join(texts(str(path))) == "one\r\ntwo\né"


def test_a_folder_is_its_text_files_by_path(tmp_path):
    for name, content in {"b.txt": b"second\n", "a/z.md": b"first", "c.bin": b"\0\1",
                          "d.txt": b"ok\xff", ".git/x.txt": b"hidden", "e.py": b"third"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "f.jsonl").write_text('{"text": "fourth"}\n')
    assert "".join(texts(str(tmp_path))) == "first\n\nsecond\nthird\n\nfourth\n\n"


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_rows_come_through_datasets(tmp_path, suffix, streaming):
    rows = datasets.Dataset.from_dict({"id": ["x1", "x2", "x3"], "text": ["One.", "", "Two.\n"]})
    path = tmp_path / f"rows.{suffix}"
    {"jsonl": rows.to_json, "parquet": rows.to_parquet, "csv": rows.to_csv}[suffix](str(path))
    assert "".join(texts(str(path), streaming=streaming)) == "One.\n\nTwo.\n"
    assert "".join(texts(str(path), text_column="id", streaming=streaming)).startswith("x1\n\nx2")


def test_rows_without_text_are_passed_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": null}\n{"text": ""}\n{"text": "A."}\n{}\n{"text": "B."}\n')
    assert "".join(texts(str(path))) == "A.\n\nB.\n\n"


def test_split_holds_for_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(10)))
    assert "".join(texts(str(path), split="train[:20%]")) == "0\n\n1\n\n"


@pytest.mark.parametrize("columns, chosen", [
    ({"title": "t", "text": "x"}, "x"),
    ({"n": 3, "story": "x", "title": "t"}, "x"),
    ({"n": 3, "whatever": "x"}, "x"),
], ids=["text", "like-text", "only-string"])
def test_text_column_is_found(monkeypatch, columns, chosen):
    rows = datasets.Dataset.from_list([dict.fromkeys(columns), columns])  # the first one empty
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    assert "".join(texts("someone/some-data")) == chosen + "\n\n"


@pytest.mark.parametrize("wanted, message", [
    (None, "--text-column; it has: left, right"),
    ("rihgt", "did you mean 'right'"),
    ("number", "no column of text 'number'"),
], ids=["two-columns", "typo", "not-text"])
def test_text_column_in_doubt(monkeypatch, wanted, message):
    rows = datasets.Dataset.from_list([{"left": "a", "right": "b", "number": 1}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    with pytest.raises(UserError, match=re.escape(message)):
        list(texts("someone/some-data", text_column=wanted))


def file_with(content: bytes):
    def make(tmp_path):
        (tmp_path / "x.txt").write_bytes(content)
        return str(tmp_path / "x.txt")
    return make


def jsonl_with(content: str):
    def make(tmp_path):
        (tmp_path / "x.jsonl").write_text(content)
        return str(tmp_path / "x.jsonl")
    return make


@pytest.mark.parametrize("make, options, message", [
    (file_with(b""), {}, "holds no text"),
    (file_with(b" \n\n"), {}, "holds no text"),
    (file_with(b"x"), {}, "only 1 characters"),
    (file_with(b"a\0b"), {}, "binary file"),
    (file_with(b"caf\xe9 noir"), {}, "not UTF-8"),
    (file_with(b"caf\xe9"), {}, "not UTF-8"),
    (file_with(b"text"), {"val_fraction": 1.0}, "held-out fraction 1.0"),
    (file_with(b"text"), {"val_fraction": 0.0}, "held-out fraction 0.0"),
    (file_with(b"text"), {"max_tokens": 1}, "too few"),
    (file_with(b"text"), {"config": "en"}, "no configuration 'en'"),
    (jsonl_with('{"text": "a"\n'), {}, "cannot read .*x.jsonl: JSON"),
    (jsonl_with('{"n": 1}\n'), {}, "which column"),
    (jsonl_with(""), {}, "holds no text"),
    (jsonl_with('{"text": "a"}\n'), {"split": "test"}, 'cannot read .*"test"'),
    (lambda path: str(path), {}, "no text in the folder"),
    (lambda path: str(path / "nothing" / "here"), {}, "no file or folder"),
    (lambda path: "shakespeare.txt", {}, "no file or folder"),
    (lambda path: "builtin", {"config": "en"}, "no configuration"),
], ids=["empty", "blank", "one-character", "nul", "latin1", "latin1-at-its-end", "fraction-1",
        "fraction-0", "one-token", "config-of-a-file", "broken-json", "no-text-column",
        "empty-jsonl", "unknown-split", "empty-folder", "missing-path", "missing-file",
        "config-of-builtin"])
def test_bad_input(tmp_path, make, options, message):
    with pytest.raises(UserError, match=message) as caught:
        prepare(make(tmp_path), "bytes", **options)
    assert "\n" not in str(caught.value)


def test_without_a_network_one_line_says_so(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be loaded: .*without a network") as caught:
        prepare("roneneldan/TinyStories", "bytes", streaming=True)
    assert "\n" not in str(caught.value)
