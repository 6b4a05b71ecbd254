import os
import re
import subprocess
import sys
from dataclasses import replace

import datasets
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from specs.errors import UserError
from train import data as module
from train import spool
from train.data import Corpus, find, fingerprint, prepare, require_length, store
from train.spool import Spool

STORY = "Once upon a time there was a dragon hatchling. Éric said 日本! 👩‍👩‍👧 " * 40
ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=2, max_size=300)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    return path


def make_corpus(n_train=500, n_val=60, dtype=np.uint16) -> Corpus:
    train, val = np.arange(n_train).astype(dtype), np.arange(n_val).astype(dtype)
    return Corpus(train, val, 3.1, 3.3, fingerprint(train, val), "numbers")


# Streaming


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


def test_a_long_text_waits_on_the_disk_and_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_IN_MEMORY", 1000)
    monkeypatch.setattr(spool, "_BLOCK", 700)
    with Spool(tmp_path) as text:
        text.write([STORY[:300], STORY[300:]], len(STORY) - 1)
        assert text.length == len(STORY) - 1 and not text.blank
        assert "".join(text.read(5, text.length)) == STORY[5:-1]
        assert "".join(text.read(0, 2)) == STORY[:2]
        assert text._file._rolled and not list(tmp_path.iterdir())


def test_no_room_for_a_long_text_is_one_line(story, monkeypatch, tmp_path):
    monkeypatch.setattr(spool, "_IN_MEMORY", 1000)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot wait in .*cache \(.*DIPTYCH_CACHE"):
        prepare(str(story), "bytes")
    monkeypatch.setattr(spool, "_IN_MEMORY", 10**6)
    assert prepare(str(story), "bytes")


# Cutting


@settings(deadline=None)
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


def test_a_file_may_have_a_name_that_is_no_text(tmp_path):
    corpus = replace(make_corpus(), source=module._describe("b\udcff.txt", None, "train"))
    corpus.save(tmp_path)
    assert Corpus.load(tmp_path).source == "b?.txt"


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


@pytest.mark.parametrize("n_train, n_val, part", [(9, 8, "held-out"), (8, 9, "training")])
def test_both_parts_need_a_window(n_train, n_val, part):
    require_length(make_corpus(9, 9), 8)
    with pytest.raises(UserError, match=f"the {part} part .* has 8 tokens, a window needs 9"):
        require_length(make_corpus(n_train, n_val), 8)


def test_importing_costs_no_datasets():
    code = "import sys, train.data; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
