import itertools
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from specs.errors import UserError
from train import tokenizer as module
from train.builtin import documentation
from train.tokenizer import Tokenizer, make_tokenizer, pieces

BYTES = make_tokenizer("bytes", [])
TEXT = "".join(documentation())[:60_000] + "日本語のテキスト、日本語の文。" * 20
BPE = make_tokenizer("bpe:700", [TEXT])
EITHER = pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
FAMILY = "a👩‍👩‍👧é日x"
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=200)


def library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer.to_json())


def test_bytes_are_their_own_ids():
    assert BYTES.vocab_size == 256
    text = FAMILY + "\r\n\t\0 \u00a0"
    assert BYTES.encode(text).tolist() == list(text.encode())


@EITHER
@given(text=ANY_TEXT)
def test_encode_is_the_library_s_and_decode_undoes_it(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == library(tokenizer).encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


@EITHER
def test_json_goes_out_and_in(tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.vocab_size == tokenizer.vocab_size
    assert (again.encode(FAMILY) == tokenizer.encode(FAMILY)).all()
    assert again.to_json() == tokenizer.to_json()


def test_bpe_has_the_size_asked_for_and_shortens():
    assert BPE.vocab_size == 700
    assert len(BPE.encode(TEXT)) < len(TEXT) / 2


def test_bpe_is_deterministic():
    assert all(make_tokenizer("bpe:700", [TEXT]).to_json() == BPE.to_json() for _ in range(3))


def test_bpe_does_not_depend_on_the_pieces(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 1000)
    cut = list(pieces([TEXT]))
    assert len(cut) > 50
    assert make_tokenizer("bpe:700", cut).to_json() == BPE.to_json()


@pytest.mark.parametrize("size", [1000, 1500, 7000])
def test_pieces_are_the_text_and_change_no_token(monkeypatch, size):
    whole = library(BPE).encode(TEXT).ids
    monkeypatch.setattr(module, "_PIECE", size)
    cut = list(pieces([TEXT]))
    assert "".join(cut) == TEXT
    assert all(size <= len(piece) < 2 * size for piece in cut[:-1])
    assert BPE.encode(TEXT).tolist() == whole


@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_pieces_do_not_depend_on_the_parts_given(cuts):
    text = TEXT[:400]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", 20)
        ends = [0, *sorted(cuts), 400]
        parts = [text[start:end] for start, end in itertools.pairwise(ends)]
        assert list(pieces(parts)) == list(pieces([text]))


def test_a_text_without_words_is_cut_at_full_length(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 8)
    assert [len(piece) for piece in pieces(["x" * 40])] == [16, 16, 8]


@EITHER
def test_stream_holds_back_only_incomplete_characters(tokenizer):
    stream = tokenizer.stream()
    ids = tokenizer.encode(FAMILY)
    given_out = [stream.push(id) for id in ids]
    assert "".join(given_out) == FAMILY and stream.flush() == ""
    assert "�" not in "".join(given_out)
    for end in range(len(ids)):
        certain = tokenizer.decode(ids[:end + 1]).rstrip("�")
        assert "".join(given_out[:end + 1]) == certain


@EITHER
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_stream_of_any_ids_is_their_text(tokenizer, data):
    high = st.integers(0, tokenizer.vocab_size - 1)
    partial = st.sampled_from(tokenizer.encode("👩日é a").tolist())
    ids = data.draw(st.lists(high | partial, max_size=40))
    stream = tokenizer.stream()
    text = ""
    for id in ids:
        text += stream.push(id)
    assert tokenizer.decode(ids).startswith(text)
    assert text + stream.flush() == tokenizer.decode(ids)
    assert stream.push(tokenizer.encode("z")[0]) + stream.flush() == "z"  # begun anew


def test_bytes_that_a_later_one_makes_no_text():
    """As Llama's tokenizers: an unknown character is said by its bytes, which are decoded at once
    where they follow one another."""
    names = ["a", *(f"<0x{byte:02X}>" for byte in (0x0A, 0xFF))]
    library = tokenizers.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [],
                                              byte_fallback=True))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    stream = Tokenizer(library).stream()
    assert [stream.push(id) for id in (1, 2, 0, 0)] == ["\n", "", "\ufffda", "a"]
    assert stream.flush() == "" and stream.push(1) == "\n"  # begun anew


def test_flush_shows_an_incomplete_character():
    stream = BYTES.stream()
    assert [stream.push(byte) for byte in b"a\xf0\x9f"] == ["a", "", ""]
    assert stream.flush() == "\ufffd"


def test_a_foreign_tokenizer_neither_truncates_nor_pads_nor_adds(tmp_path):
    foreign = library(BPE)
    foreign.add_special_tokens(["<s>"])
    foreign.enable_truncation(4)
    foreign.enable_padding(length=64)
    foreign.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BPE.vocab_size)])
    path = tmp_path / "tokenizer.json"
    foreign.save(str(path))
    tokenizer = make_tokenizer(str(path), [])
    assert tokenizer.vocab_size == BPE.vocab_size + 1
    assert tokenizer.encode(TEXT[:500]).tolist() == BPE.encode(TEXT[:500]).tolist()
    assert tokenizer.decode([BPE.vocab_size]) == "<s>"


def test_ids_with_gaps_are_below_the_vocabulary_size():
    content = json.loads(BYTES.to_json())
    content["model"]["vocab"]["zz"] = 999
    assert Tokenizer.from_json(json.dumps(content)).vocab_size == 1000


@pytest.mark.parametrize("name", ["bpe", "bpe:", "bpe:256", "bpe:4k", "bpe:-5"])
def test_bad_bpe_size(name):
    with pytest.raises(UserError, match="at least 257"):
        make_tokenizer(name, [])


@pytest.mark.parametrize("content, problem", [
    (b'{"architectures": ["Llama"]}', "no tokenizer.json"),
    (b"not json", "no tokenizer.json"),
    (b"\x80\x81", "not UTF-8"),
    (None, "no tokenizer '"),
], ids=["foreign-json", "text", "binary", "missing"])
def test_bad_tokenizer_file(tmp_path, content, problem):
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        make_tokenizer(str(path), [])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_may_be_called_like_a_bpe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bpe-mine.json").write_text(BYTES.to_json())
    assert make_tokenizer("bpe-mine.json", []).to_json() == BYTES.to_json()


def test_a_folder_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        make_tokenizer(str(tmp_path), [])


@EITHER
def test_half_a_character_is_a_user_error(tokenizer):
    with pytest.raises(UserError, match=r"U\+D800"):
        tokenizer.encode("a\ud800")
