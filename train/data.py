"""A corpus: text, cut by position into a training and a held-out part, then made tokens.

It is known by a fingerprint of its tokens. A run directory carries its corpus when that is small;
a large one waits in the cache, where the fingerprint finds it.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from specs.errors import UserError
from train.files import expanded, write_bytes
from train.sources import BUILTIN, texts
from train.spool import Spool, shown
from train.tokenizer import Tokenizer, make_tokenizer, pieces

STREAM_TOKENS = 20_000_000  # where a stream is cut unless told otherwise
CARRIED_BYTES = 64 * 2**20  # up to this size a run directory carries its corpus
_LEARNT = 1 << 28  # characters that a vocabulary is learnt from
_TEXT_PER_TOKEN = 6  # characters read for each token wanted: more than a vocabulary's mean
_FILE = "corpus.safetensors"
_CHUNK = 1 << 20  # tokens hashed at a time


@dataclass(frozen=True, eq=False)
class Corpus:
    """`train` and `val` are (n,) token ids, uint16 where the vocabulary fits, else uint32.

    `fingerprint` belongs to the tokens of both parts, whatever their dtype; `source` says in
    words where the text came from.
    """

    train: np.ndarray
    val: np.ndarray
    val_bytes_per_token: float
    train_bytes_per_token: float
    fingerprint: str
    source: str

    def save(self, folder: Path) -> None:
        """Write the corpus to `folder`, made if need be, in one file that is whole or absent."""
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"fingerprint": self.fingerprint, "source": self.source,
                    "val_bytes_per_token": repr(self.val_bytes_per_token),
                    "train_bytes_per_token": repr(self.train_bytes_per_token)}
        content = safetensors.numpy.save({"train": self.train, "val": self.val}, metadata)
        write_bytes(folder / _FILE, content)

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Read what `save` wrote. Raises `UserError` if it is missing, cut short or changed."""
        path = folder / _FILE
        try:
            with safetensors.safe_open(path, "numpy") as file:
                found = file.metadata()
                corpus = cls(file.get_tensor("train"), file.get_tensor("val"),
                             float(found["val_bytes_per_token"]),
                             float(found["train_bytes_per_token"]),
                             found["fingerprint"], found["source"])
        except FileNotFoundError:
            raise UserError(f"no corpus in {folder}: {_FILE} is missing") from None
        except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): copy it again from where it was "
                            "written") from None
        if fingerprint(corpus.train, corpus.val) != corpus.fingerprint:
            raise UserError(f"{path} is damaged: its tokens do not match their fingerprint "
                            f"{corpus.fingerprint}; copy it again from where it was written")
        return corpus


def fingerprint(train: np.ndarray, val: np.ndarray) -> str:
    """32 hex digits of the SHA-256 of both parts' lengths and tokens."""
    digest = hashlib.sha256(np.array([len(train), len(val)], "<u8").tobytes())
    for part in (train, val):
        for start in range(0, len(part), _CHUNK):
            digest.update(part[start:start + _CHUNK].astype("<u4").tobytes())
    return digest.hexdigest()[:32]


def prepare(data: str, tokenizer: str, *, val_fraction: float = 0.1, max_tokens: int | None = None,
            config: str | None = None, split: str = "train", text_column: str | None = None,
            streaming: bool = False) -> tuple[Corpus, Tokenizer]:
    """Read `data`, hold out the last `val_fraction` of its characters, and make both parts tokens.

    `data`: see `train.sources.texts`; `tokenizer`: see `make_tokenizer`, a BPE is learnt from the
    training part alone, of its first 256 million characters if it has more. At most `max_tokens`
    tokens are kept (of a stream 20 million unless told otherwise), each part from its beginning;
    only the text needed for them is read, and its bytes per token are those of all that was
    encoded. The text waits on the disk and is cut before any of it is encoded, so no token and no
    window straddles the border.
    Raises `UserError` for text that is missing, empty or not text, and for bad options.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"the held-out fraction {val_fraction} must be above 0 and below 1")
    if max_tokens is not None and max_tokens < 2:
        raise UserError(f"at most {max_tokens} tokens are too few for two parts")
    if streaming:
        max_tokens = max_tokens or STREAM_TOKENS
    per_token = 1 if tokenizer == "bytes" else _TEXT_PER_TOKEN
    held_out = max(1, round(max_tokens * val_fraction)) if max_tokens else None
    kept = max_tokens - held_out if max_tokens and held_out else None
    with Spool(_made(cache_folder())) as text:
        text.write(texts(data, config, split, text_column, streaming),
                   max_tokens and max_tokens * per_token)
        if text.blank:
            raise UserError(f"{data} holds no text: choose another with --data")
        cut = int(text.length * (1 - val_fraction))
        if not 0 < cut < text.length:
            raise UserError(f"{data} has only {text.length} characters: too few to hold some out")
        library = make_tokenizer(tokenizer, pieces(text.read(0, min(cut, _LEARNT))))
        train, train_bytes = _encoded(library, shown("Encoding", text.read(0, cut), cut), kept)
        val, val_bytes = _encoded(library, text.read(cut, text.length), held_out)
    if not len(train) or not len(val):
        raise UserError(f"tokenizer {tokenizer} makes no tokens of the text in {data}")
    corpus = Corpus(train, val, val_bytes, train_bytes, fingerprint(train, val),
                    _describe(data, config, split))
    return corpus, library


def _made(folder: Path) -> Path:
    """The folder, there if it can be: a small corpus does without it."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _encoded(library: Tokenizer, text: Iterable[str],
             most: int | None) -> tuple[np.ndarray, float]:
    """The first `most` ids of a text, all for None, and the bytes for each of those made."""
    dtype = np.uint16 if library.vocab_size <= 2**16 else np.uint32
    ids, size = bytearray(), 0  # which grow where they are
    for piece, length in library.encode_each(pieces(text)):
        ids += piece.astype(dtype).tobytes()
        size += length
        if most is not None and len(ids) >= most * dtype().itemsize:
            break
    tokens = np.frombuffer(ids, dtype)
    return tokens[:most], size / max(1, len(tokens))


def _describe(data: str, config: str | None, split: str) -> str:
    if data in BUILTIN:
        return f"{data} of Python {platform.python_version()}"
    name = data.encode(errors="replace").decode()  # of a file, which need not be UTF-8
    return " ".join([name, *filter(None, [config]), *([split] if split != "train" else [])])


def require_length(corpus: Corpus, block_size: int) -> None:
    """Raises `UserError` unless both parts have a window of `block_size` tokens and its targets."""
    for name, part in (("training", corpus.train), ("held-out", corpus.val)):
        if len(part) <= block_size:
            raise UserError(f"the {name} part of {corpus.source} has {len(part)} tokens, a window "
                            f"needs {block_size + 1}: lower --block-size or give more text")


def store(corpus: Corpus, run_folder: Path) -> None:
    """Keep the corpus of a run: in the cache, and up to 64 MB in `run_folder`/corpus as well.

    Raises `UserError` if the cache is the only place and cannot be written.
    """
    folder = _cache() / corpus.fingerprint
    carried = corpus.train.nbytes + corpus.val.nbytes <= CARRIED_BYTES
    if carried:
        corpus.save(run_folder / "corpus")
    try:
        if not _holds(folder, corpus.fingerprint):
            corpus.save(folder)
    except OSError as error:
        if carried:
            return
        raise UserError(f"the corpus cannot be kept in {folder} ({error.strerror}): make room, or "
                        "set DIPTYCH_CACHE to another folder") from None


def _holds(folder: Path, fingerprint: str) -> bool:
    try:
        return Corpus.load(folder).fingerprint == fingerprint
    except UserError:
        return False


def find(run_folder: Path, fingerprint: str, hint: str) -> Corpus:
    """The corpus of a run, from `run_folder`/corpus or the cache.

    `hint` is the command that prepares the same corpus again. Raises `UserError` if the corpus
    is in neither place, or not the right one: what is wrong in each, and what to do.
    """
    problems = []
    for folder in (run_folder / "corpus", _cache() / fingerprint):
        try:
            corpus = Corpus.load(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        if corpus.fingerprint == fingerprint:
            return corpus
        problems.append(f"{folder} holds another corpus, {corpus.fingerprint}")
    raise UserError(f"the corpus {fingerprint} of {run_folder} cannot be found ("
                    + "; ".join(problems) + f"): copy {run_folder / 'corpus'} or "
                    f"{_cache() / fingerprint} from the machine where the run began, or prepare "
                    f"it again with: {hint}")


def cache_folder() -> Path:
    """Where things are kept between runs."""
    return expanded(os.environ.get("DIPTYCH_CACHE") or "~/.cache/diptych")


def _cache() -> Path:
    return cache_folder() / "corpora"
