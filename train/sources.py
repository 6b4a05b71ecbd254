"""Where text comes from: the built-in corpus, a file, a folder, or a data set of `datasets`.

Whatever the source, it becomes a stream of strings that are the corpus when put together, so a
reader with enough can stop early.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specs.base import did_you_mean
from specs.errors import UserError
from train.builtin import documentation, source_files
from train.files import expanded

BUILTIN = {"builtin": documentation, "builtin-source": source_files}
_LOADERS = {".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_TEXT_COLUMNS = ("text", "content", "document", "story", "article", "body")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_FILE_SUFFIXES = {".txt", ".md", ".json", ".gz", ".zst", ".zip", ".py", *_LOADERS}
_ROWS = 1000  # fetched at a time
_CHARACTERS = 1 << 20  # read at a time


class _NotText(UserError):
    """A file that is not UTF-8 text: an error by itself, passed over in a folder."""


def texts(data: str, config: str | None = None, split: str = "train",
          text_column: str | None = None, streaming: bool = False) -> Iterator[str]:
    """The text of `data` in pieces: "builtin", "builtin-source", a path, or a `datasets` id.

    `config` is a data set's configuration; `split` and `text_column` hold for data sets and for
    .jsonl, .parquet and .csv files. Raises `UserError` for what is missing, no text or not to be
    had of plain text, also while it is read.
    """
    if not data:
        raise UserError("--data is empty: give a file, a folder or a `datasets` id")
    path = expanded(data)
    local = data in BUILTIN or path.exists()
    if config is not None and local:
        raise UserError(f"{data} has no configuration {config!r}: only a `datasets` id has")
    if local and not any(file.suffix in _LOADERS for file in (path, *path.rglob("*"))):
        for option, value, default in (("--text-column", text_column, None),
                                       ("--data-split", split, "train")):
            if value != default:
                raise UserError(f"{data} is plain text, {option} {value} has no meaning there: "
                                "leave it out")
    if data in BUILTIN:
        return BUILTIN[data]()
    if path.is_dir():
        return _folder(path, split, text_column, streaming)
    if path.exists():
        return _file(path, split, text_column, streaming)
    if not _HUB_ID.fullmatch(data) or path.suffix in _FILE_SUFFIXES:
        raise UserError(f"no file or folder {data!r}: check the path, or use --data builtin")
    return _rows(data, {"path": data, "name": config}, split, text_column, streaming)


def _folder(root: Path, split: str, text_column: str | None, streaming: bool) -> Iterator[str]:
    """All text files under `root`, sorted by path; hidden and binary ones are passed over."""
    inside = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    visible = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    empty = True
    for path in sorted(visible, key=Path.as_posix):
        pieces = _file(root / path, split, text_column, streaming)
        if path.suffix not in _LOADERS:
            try:  # the whole file, so that one with a bad byte at its end leaves nothing behind
                pieces = iter([_closed("".join(pieces))])
            except _NotText:
                continue
        for piece in pieces:
            empty = empty and not piece
            yield piece
    if empty:
        raise UserError(f"no text in the folder {root}: it needs UTF-8 text, .jsonl, .parquet or "
                        ".csv files")


def _file(path: Path, split: str, text_column: str | None, streaming: bool) -> Iterator[str]:
    if path.suffix in _LOADERS and path.stat().st_size:  # `datasets` trips over an empty file
        files = {"path": _LOADERS[path.suffix], "data_files": str(path)}
        return _rows(str(path), files, split, text_column, streaming)
    return _plain(path)


def _plain(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            while piece := file.read(_CHARACTERS):
                if "\0" in piece:
                    raise _NotText(f"{path} is a binary file (it holds NUL bytes): --data takes "
                                   "UTF-8 text, .jsonl, .parquet or .csv")
                yield piece
    except UnicodeDecodeError as error:
        raise _NotText(f"{path} is not UTF-8 text ({error.reason}): convert it, for example with "
                       f"iconv -f latin1 -t utf-8 {path}") from None
    except PermissionError:
        raise UserError(f"{path} may not be read: check its permissions") from None


def _rows(name: str, files: dict[str, Any], split: str, text_column: str | None,
          streaming: bool) -> Iterator[str]:
    """The text column of what `datasets.load_dataset(**files)` finds, a document a row.

    Rows without text are passed over.
    """
    import datasets  # takes a second or more
    import huggingface_hub.utils.logging as hub_logging

    hub_logging.set_verbosity_error()  # its five retries would each print two lines
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if "data_files" not in files:
        print(f"loading the data set {name}", file=sys.stderr)
    try:
        dataset = datasets.load_dataset(**files, split=split, streaming=streaming)
        column = None
        for batch in dataset.iter(_ROWS):
            column = column or _text_column(name, batch, text_column)
            yield from (_closed(row) for row in batch[column] if row and isinstance(row, str))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        if "data_files" in files:
            raise UserError(f"cannot read {name}: {reason}") from error
        advice = "; without a network use --data builtin or a local file" \
            if isinstance(error, ConnectionError) else ""
        raise UserError(f"{name!r} is no file or folder here, and as a data set it cannot be "
                        f"loaded: {reason}{advice}") from error


def _text_column(name: str, rows: dict[str, list[Any]], wanted: str | None) -> str:
    strings = [column for column, values in rows.items()
               if any(isinstance(value, str) for value in values)]
    if wanted is not None:
        if wanted not in strings:
            raise UserError(f"{name} has no column of text {wanted!r}"
                            + did_you_mean(wanted, strings))
        return wanted
    known = [column for column in _TEXT_COLUMNS if column in strings]
    if not known and len(strings) != 1:
        raise UserError(f"{name}: which column is the text? Say it with --text-column; it has: "
                        + ", ".join(strings or rows))
    return (known or strings)[0]


def _closed(document: str) -> str:
    """The document with an end that keeps it apart from the next one."""
    return document if document.endswith("\n") or not document else document + "\n\n"
