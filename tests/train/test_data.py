import os
import re
import subprocess
import sys

import datasets
import huggingface_hub
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from specs.errors import UserError
from train import data as module
from train.data import Corpus, find, fingerprint, prepare, require_length, store
from train.sources import texts

STORY = "Once upon a time there was a dragon hatchling. Éric said 日本! 👩‍👩‍👧 " * 40
ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=2, max_size=300)


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("DIPTYCH_CACHE", str(folder / "diptych"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    return path


def make_corpus(n_train=500, n_val=60, dtype=np.uint16) -> Corpus:
    train, val = np.arange(n_train).astype(dtype), np.arange(n_val).astype(dtype)
    return Corpus(train, val, 3.1, 3.3, fingerprint(train, val), "numbers")


# Reading


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
    monkeypatch.setattr(datasets, "load_dataset",
                        lambda *args, **kwargs: datasets.Dataset.from_list([columns]))
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


def test_a_hub_id_goes_to_datasets_with_its_options(monkeypatch):
    asked = []

    def load_dataset(**options):
        asked.append(options)
        return datasets.Dataset.from_list([{"text": STORY}]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus, _ = prepare("someone/some-data", "bytes", config="en", split="test", streaming=True)
    assert asked == [{"path": "someone/some-data", "name": "en", "split": "test",
                      "streaming": True}]
    assert corpus.source == "someone/some-data en test"


def test_a_stream_is_read_only_as_far_as_needed(monkeypatch):
    rows = datasets.IterableDataset.from_generator(
        lambda: ({"text": "row after row"} for _ in iter(int, 1)))  # without end
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    monkeypatch.setattr(module, "STREAM_TOKENS", 50_000)
    corpus, _ = prepare("someone/some-data", "bytes", streaming=True)
    assert len(corpus.train) + len(corpus.val) == 50_000


# Cutting


@given(text=ANY_TEXT, fraction=st.floats(0.01, 0.99), limit=st.none() | st.integers(2, 300))
def test_parts_are_the_text_s_head_and_tail(tmp_path_factory, text, fraction, limit):
    cut = int(len(text) * (1 - fraction))
    assume(not text.isspace() and not text.startswith("\ufeff") and 0 < cut < len(text))
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(text, encoding="utf-8", newline="")
    corpus, tokenizer = prepare(str(path), "bytes", val_fraction=fraction, max_tokens=None)
    assert tokenizer.decode(corpus.train) == text[:cut]
    assert tokenizer.decode(corpus.val) == text[cut:]
    if limit is not None and len(text[:limit]) == limit and not text[:limit].isspace():
        cut = int(limit * (1 - fraction))
        assume(0 < cut < limit)
        corpus, tokenizer = prepare(str(path), "bytes", val_fraction=fraction, max_tokens=limit)
        assert text[:cut].encode().startswith(corpus.train.astype(np.uint8).tobytes())
        assert text[cut:limit].encode().startswith(corpus.val.astype(np.uint8).tobytes())
        assert len(corpus.train) + len(corpus.val) <= limit


def test_a_bpe_knows_nothing_of_the_held_out_part(tmp_path):
    path = tmp_path / "text.txt"
    head, tail = "the dragon sleeps " * 500, "zyx zyx zyx zyx zyx " * 50
    path.write_text(head + tail)
    fraction = len(tail) / len(head + tail)
    corpus, tokenizer = prepare(str(path), "bpe:300", val_fraction=fraction)
    assert tokenizer.decode(corpus.train) == head
    assert tokenizer.decode(corpus.val) == tail
    assert " dragon" in {tokenizer.decode([id]) for id in corpus.train}
    assert {len(tokenizer.decode([id])) for id in corpus.val} == {1}
    assert corpus.val_bytes_per_token == 1.0 and corpus.train_bytes_per_token > 4


def test_bytes_per_token(story):
    corpus, tokenizer = prepare(str(story), "bpe:400")
    held_out = tokenizer.decode(corpus.val)
    assert corpus.val_bytes_per_token == len(held_out.encode()) / len(corpus.val) > 1.5


def test_max_tokens_keeps_the_held_out_fraction(story):
    corpus, _ = prepare(str(story), "bytes", max_tokens=1000, val_fraction=0.2)
    assert (len(corpus.train), len(corpus.val)) == (800, 200)


def test_tokens_are_small_where_the_vocabulary_fits(story, tmp_path):
    small, tokenizer = prepare(str(story), "bytes")
    path = tmp_path / "large.json"
    path.write_text(tokenizer.to_json().replace('"merges"', '"merges"', 1)
                    .replace('"!": 33', '"!": 33, "zz": 70000'))
    large, _ = prepare(str(story), str(path))
    assert (small.train.dtype, large.train.dtype) == (np.uint16, np.uint32)
    assert small.fingerprint == large.fingerprint


# Keeping


def test_fingerprint_belongs_to_the_tokens_and_their_border():
    base = make_corpus()
    tokens = np.concatenate([base.train, base.val])
    assert fingerprint(base.train.astype(np.int64), base.val) == base.fingerprint
    assert fingerprint(tokens[:499], tokens[499:]) != base.fingerprint
    assert fingerprint(base.train, base.val[::-1]) != base.fingerprint
    assert re.fullmatch("[0-9a-f]{32}", base.fingerprint)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32], ids=["uint16", "uint32"])
def test_a_corpus_comes_back_as_it_was(tmp_path, dtype):
    corpus = make_corpus(dtype=dtype)
    corpus.save(tmp_path / "a" / "b")
    corpus.save(tmp_path / "a" / "b")
    again = Corpus.load(tmp_path / "a" / "b")
    assert (again.train == corpus.train).all() and (again.val == corpus.val).all()
    assert again.train.dtype == dtype
    assert [getattr(again, name) for name in Corpus.__annotations__ if "val" != name != "train"] \
        == [3.1, 3.3, corpus.fingerprint, "numbers"]
    assert os.listdir(tmp_path / "a" / "b") == ["corpus.safetensors"]


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "foreign", "missing"])
def test_a_harmed_corpus_is_refused(tmp_path, harm):
    make_corpus().save(tmp_path)
    path = tmp_path / "corpus.safetensors"
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-1], "empty": b"", "foreign": b"x" * 100,
                          "flipped": content[:-1] + bytes([content[-1] ^ 1])}[harm])
    with pytest.raises(UserError, match="missing" if harm == "missing" else "damaged") as caught:
        Corpus.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    make_corpus().save(tmp_path)
    before = (tmp_path / "corpus.safetensors").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError):
        make_corpus(400).save(tmp_path)
    assert os.listdir(tmp_path) == ["corpus.safetensors"]
    assert (tmp_path / "corpus.safetensors").read_bytes() == before


def test_a_small_corpus_travels_with_its_run(tmp_path):
    corpus = make_corpus()
    store(corpus, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert find(tmp_path / "moved", corpus.fingerprint, "").fingerprint == corpus.fingerprint


def test_a_large_corpus_waits_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CARRIED_BYTES", 1000)
    corpus = make_corpus()
    store(corpus, tmp_path)
    assert not (tmp_path / "corpus").exists()
    kept = module._cache() / corpus.fingerprint / "corpus.safetensors"
    assert kept.is_file()
    assert find(tmp_path, corpus.fingerprint, "").fingerprint == corpus.fingerprint
    kept.unlink()
    with pytest.raises(UserError) as caught:
        find(tmp_path, corpus.fingerprint, "train it --again")
    assert str(kept.parent) in str(caught.value) and "train it --again" in str(caught.value)


def test_another_corpus_in_the_run_is_not_taken(tmp_path):
    store(make_corpus(400), tmp_path)
    with pytest.raises(UserError, match="another corpus"):
        find(tmp_path, make_corpus().fingerprint, "")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(module, "CARRIED_BYTES", 0)
    with pytest.raises(UserError, match="DIPTYCH_CACHE"):
        store(make_corpus(), tmp_path / "run")


# Bad input


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
    (jsonl_with('{"text": "a"}\n'), {"split": "test"}, 'cannot read .*"test"'),
    (lambda path: str(path), {}, "no text in the folder"),
    (lambda path: str(path / "nothing" / "here"), {}, "no file or folder"),
    (lambda path: "shakespeare.txt", {}, "no file or folder"),
    (lambda path: "builtin", {"config": "en"}, "no configuration"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input(tmp_path, make, options, message):
    with pytest.raises(UserError, match=message) as caught:
        prepare(make(tmp_path), "bytes", **options)
    assert "\n" not in str(caught.value)


def test_without_a_network_one_line_says_so(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be loaded: .*without a network") as caught:
        prepare("roneneldan/TinyStories", "bytes", streaming=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_train, n_val, part", [(9, 8, "held-out"), (8, 9, "training")])
def test_both_parts_need_a_window(n_train, n_val, part):
    require_length(make_corpus(9, 9), 8)
    with pytest.raises(UserError, match=f"the {part} part .* has 8 tokens, a window needs 9"):
        require_length(make_corpus(n_train, n_val), 8)


def test_importing_costs_no_datasets():
    code = "import sys, train.data; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
