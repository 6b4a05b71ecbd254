"""Text to token ids and back: the `tokenizers` library behind one small class.

A corpus is encoded in pieces, cut between two words where the usual pre-tokenizers cut as well,
so that the ids depend on the text alone and all cores are busy.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from specs.errors import UserError
from train.files import expanded

_PIECE = 1 << 16  # characters, at most twice as many
_SEAM = re.compile(r"\w(?= \w)")
_TOGETHER = 64  # pieces handed to the library at a time


class Tokenizer:
    """Ids are below `vocab_size`. Special tokens are neither added nor hidden: the text decoded is
    the text encoded, as far as the vocabulary can say it."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._is_bytes = library.to_str() == _byte_level().to_str()
        self.vocab_size = 1 + max(library.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """From the content of a tokenizer.json. Raises `UserError` if it is none."""
        try:
            library = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            reason = str(error).splitlines()[0]
            raise UserError(f"this is no tokenizer.json of `tokenizers`: {reason}") from None
        tokenizer = cls(library)
        if tokenizer.vocab_size < 1:
            raise UserError("this tokenizer.json has an empty vocabulary: choose another one")
        return tokenizer

    def to_json(self) -> str:
        """The content of a tokenizer.json, as every Hugging Face tool reads it."""
        return self._library.to_str(pretty=True)

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, (n,) int32. Raises `UserError` if it cannot be said in UTF-8, or not
        with this vocabulary."""
        ids = [ids for ids, _ in self.encode_each(pieces([text]))]
        return np.concatenate([np.empty(0, np.int32), *ids])

    def encode_each(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, int]]:
        """The ids of each text, (n,) int32, and its size in bytes. Raises as `encode` does."""
        texts = iter(texts)
        while together := list(itertools.islice(texts, _TOGETHER)):
            data = [_utf8(text) for text in together]
            yield from zip(self._ids(together, data), map(len, data), strict=True)

    def _ids(self, texts: list[str], data: list[bytes]) -> list[np.ndarray]:
        if self._is_bytes:
            return [np.frombuffer(text, np.uint8).astype(np.int32) for text in data]
        try:
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            reason = str(error).splitlines()[0]
            raise UserError(f"this tokenizer cannot say the text: {reason}") from None
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self._library.decode([int(id) for id in ids], skip_special_tokens=False)

    def stream(self) -> TextStream:
        """A decoder for ids that come one at a time."""
        return TextStream(self._library)


class TextStream:
    """Decodes ids one by one; all that `push` and `flush` return makes up `Tokenizer.decode`, but
    where bytes that were given as text are none any more beside later ones (byte fallback)."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._library = library
        self._begin()

    def _begin(self) -> None:
        self._stream: decoders.DecodeStream | None = decoders.DecodeStream(
            skip_special_tokens=False)
        self._ids: list[int] = []
        self._given = 0

    def push(self, id: int) -> str:
        """The text that is certain after one more id: "" while a character is incomplete."""
        self._ids.append(int(id))
        text = self._certain()
        self._given += len(text)
        return text

    def _certain(self) -> str:
        if self._stream:
            try:
                return self._stream.step(self._library, self._ids[-1]) or ""
            except Exception:  # what it gave before is no beginning any more: it goes no further
                self._stream = None
        text = self._library.decode(self._ids, skip_special_tokens=False)
        return "" if text.endswith("\ufffd") else text[self._given:]

    def flush(self) -> str:
        """What was held back, U+FFFD for an incomplete character; the stream begins anew."""
        text = self._library.decode(self._ids, skip_special_tokens=False)[self._given:]
        self._begin()
        return text


def make_tokenizer(name: str, train_text: Iterable[str]) -> Tokenizer:
    """The tokenizer called `name`: "bytes", "bpe:4096", or the path of a tokenizer.json.

    A BPE vocabulary is learnt from `train_text`, whose strings are the training part in any
    pieces (`pieces`); it has fewer entries than asked for where nothing more repeats.
    Raises `UserError` for any other name and for a file that is no tokenizer.
    """
    if name == "bytes":
        return Tokenizer(_byte_level())
    if name == "bpe" or name.startswith("bpe:"):
        size = name.removeprefix("bpe:")
        if not re.fullmatch(r"\d{3,7}", size) or int(size) < 257:
            raise UserError(f"tokenizer {name!r}: bpe: is followed by the size of its vocabulary, "
                            "at least 257 and below ten million, as in bpe:4096")
        return Tokenizer(_train_bpe(int(size), train_text))
    path = expanded(name)
    try:
        return Tokenizer.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no tokenizer {name!r}: say bytes, bpe:4096 or the path of a "
                        "tokenizer.json") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder: give the path of the tokenizer.json in it") from None
    except UnicodeDecodeError:
        raise UserError(f"{name} is no tokenizer.json: it is not UTF-8 text") from None
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def pieces(text: Iterable[str]) -> Iterator[str]:
    """`text`, given in any parts, in pieces of 65,536 characters or up to twice that, cut before a
    space between words.

    Only where such a place is missing is a piece cut at its full length.
    """
    held = ""
    for part in text:
        held += part
        start = 0
        while len(held) - start >= 2 * _PIECE:
            end = _end(held, start)
            yield held[start:end]
            start = end
        held = held[start:]
    while held:
        end = _end(held, 0)
        yield held[:end]
        held = held[end:]


def _end(text: str, start: int) -> int:
    """Where the piece that begins at `start` is cut."""
    end = start + 2 * _PIECE
    seam = _SEAM.search(text, start + _PIECE, end)
    return seam.end() if seam else end


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError("the text holds half a character (a lone surrogate, U+"
                        f"{ord(text[error.start]):04X}): remove it") from None


def _byte_level(merge: bool = False) -> tokenizers.Tokenizer:
    """A byte-level BPE of the 256 bytes, id = value; `merge`: empty and ready to be trained."""
    alphabet = set(ByteLevel.alphabet())
    others = iter(sorted(alphabet - {chr(byte) for byte in range(256)}))  # for the unprintable
    names = (chr(byte) if chr(byte) in alphabet else next(others) for byte in range(256))
    model = models.BPE() if merge else \
        models.BPE(vocab={name: byte for byte, name in enumerate(names)}, merges=[])
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=merge)
    library.decoder = decoders.ByteLevel()
    return library


def _train_bpe(size: int, text: Iterable[str]) -> tokenizers.Tokenizer:
    library = _byte_level(merge=True)
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False,
                                  initial_alphabet=ByteLevel.alphabet())
    print(f"learning a vocabulary of {size:,}", file=sys.stderr)
    library.train_from_iterator(text, trainer)
    return library
