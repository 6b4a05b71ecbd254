"""Text that grows: prompts go in as one batch, pieces of their texts come out.

Prompts of different lengths need no padding. All rows stand at the same position always: what
every row knows is read in one call; then each call reads one token a row, of the prompt where it
is not over, the one just sampled where it is. This works for every architecture, whatever its
decoding state is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from generate.memory import Memory
from generate.sampling import Sampler
from specs.backend import Backend, Decoder, Model
from specs.errors import UserError
from train.tokenizer import Tokenizer

START = "\n"  # what an empty prompt is read as: a text may begin wherever a line does


@dataclass(frozen=True)
class Piece:
    """More text after prompt number `row`; with the last piece, `finish` is "stop" or "length"."""

    row: int
    text: str
    finish: str | None = None


@dataclass
class Speed:
    """What `write` measures. Prefill is the call that ends with the first new token, decode all
    that comes after it; tokens are those of all rows together."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def __str__(self) -> str:
        if not self.prefill_seconds:
            return "stopped before the first token"
        rate = self.prefill_tokens / self.prefill_seconds
        prefill = (f"first token after {self.prefill_seconds:.3g} s ({self.prefill_tokens} read, "
                   f"{rate:,.0f} tokens/s)")
        if not self.decode_tokens:
            return prefill
        rate = self.decode_tokens / self.decode_seconds
        return f"{prefill}, then {self.decode_tokens} at {rate:,.0f} tokens/s"


def write(backend: Backend, model: Model, tokenizer: Tokenizer, prompts: Sequence[str],
          sampler: Sampler, max_tokens: int = 200, stop: Sequence[str] = (), state: str = "auto",
          speed: Speed | None = None, max_length: int | None = None,
          memory: Memory | None = None) -> Iterator[Piece]:
    """Continue all prompts at once, each with the text that it would have had alone.

    A text ends before the first of the `stop` strings, after `max_tokens` tokens, or where it
    and its prompt have `max_length`, the spec's. An empty prompt stands for a line break, which
    is not part of the text. `state` is the decoder's. With a `memory` there is one prompt, which
    goes on what the memory holds, and in the end it holds that too; its kind is the decoder's.
    Raises `UserError` for a prompt without tokens or as long as the model can read, an empty stop
    string, an impossible number of tokens, several prompts beside a memory.
    """
    require_max_tokens(max_tokens)
    if not all(stop):
        raise UserError("--stop '' would end every text before it begins: give some text")
    if memory is not None and len(prompts) > 1:
        raise UserError(f"a memory is of one text, not of {len(prompts)}: give one --prompt")
    before = memory or Memory(state)
    start = "" if before.state else START
    rows = [_Row(number, tokenizer, prompt or start, max_tokens, stop, max_length, before.tokens)
            for number, prompt in enumerate(prompts)]
    decoder = backend.decoder(model, len(rows), max(len(row.ids) for row in rows), before.kind)
    if before.state:
        decoder.load_state(before.state)
    return _grow(rows, decoder, sampler, tokenizer.vocab_size, speed or Speed(), memory)


def require_max_tokens(number: int) -> None:
    """Raise `UserError` unless a text may have so many tokens."""
    if not 1 <= number < 2**31:
        raise UserError(f"--max-tokens {number} must be at least 1 and below {2**31:,}")


def encoded(tokenizer: Tokenizer, prompt: str, max_length: int | None,
            before: int = 0) -> np.ndarray:
    """The tokens of a prompt behind `before` others, (n,). Raises `UserError` if there are none
    in all, or as many as the model can read."""
    tokens = tokenizer.encode(prompt)
    length = before + len(tokens)
    if not length:
        raise UserError(f"the prompt {prompt!r} has no token in this run's tokenizer: give "
                        "another one")
    if max_length is not None and length >= max_length:
        raise UserError(f"a prompt of {length} tokens leaves no room: this model knows "
                        f"{max_length} positions; shorten it")
    return tokens


def _grow(rows: list[_Row], decoder: Decoder, sampler: Sampler, vocab_size: int,
          speed: Speed, memory: Memory | None) -> Iterator[Piece]:
    position, first, text = memory.read if memory else 0, True, rows[0]
    while rows:
        began = time.perf_counter()
        end = min(row.length for row in rows)
        tokens = np.stack([row.ids[position:end] for row in rows])
        logits = decoder.read(tokens)[:, :vocab_size]
        position = end
        pieces = [row.add(sampler(row_logits, row.ids[:end]))
                  for row, row_logits in zip(rows, logits, strict=True) if row.length == end]
        unfinished = [i for i, row in enumerate(rows) if not row.finish]
        if 0 < len(unfinished) < len(rows):
            decoder = decoder.fork(unfinished)
        rows = [rows[i] for i in unfinished]
        seconds = time.perf_counter() - began
        if first:
            speed.prefill_tokens, speed.prefill_seconds, first = tokens.size, seconds, False
        else:
            speed.decode_tokens += len(pieces)
            speed.decode_seconds += seconds
        if memory and not rows:
            memory.tokens, memory.state = text.ids[: text.length], decoder.state()
        yield from pieces


class _Row:
    """One text: the tokens before it and the prompt's, then the sampled ones."""

    def __init__(self, number: int, tokenizer: Tokenizer, prompt: str, max_tokens: int,
                 stop: Sequence[str], max_length: int | None, before: np.ndarray) -> None:
        read = np.concatenate([before, encoded(tokenizer, prompt, max_length, len(before))])
        if max_length is not None:
            max_tokens = min(max_tokens, max_length - len(read))
        self.number = number
        self.ids = np.zeros(len(read) + max_tokens, read.dtype)  # room that costs nothing yet
        self.length = len(read)
        self.ids[: self.length] = read
        self.finish: str | None = None
        self._text = tokenizer.stream()
        for token in read:  # some tokenizers put a space before a word unless it comes first
            self._text.push(token)
        self._stop = StopStrings(stop)

    def add(self, token: int) -> Piece:
        self.ids[self.length] = token
        self.length += 1
        text = self._stop.push(self._text.push(token))
        if self.length == len(self.ids):
            text += self._stop.push(self._text.flush()) + self._stop.flush()
            self.finish = "length"
        if self._stop.found:
            self.finish = "stop"
        return Piece(self.number, text, self.finish)


class StopStrings:
    """Lets text pass up to the first stop string, and holds back what may be the start of one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings, self.held, self.found = strings, "", False

    def push(self, text: str) -> str:
        """The text that is certain after more of it: none once a stop string was found."""
        if self.found:
            return ""
        self.held += text
        places = [self.held.find(string) for string in self.strings if string in self.held]
        self.found = bool(places)
        keep = max((n for string in self.strings for n in range(1, len(string))
                    if self.held.endswith(string[:n])), default=0)
        return self._give(min(places) if places else len(self.held) - keep)

    def flush(self) -> str:
        """What was held back: no more text comes."""
        return "" if self.found else self._give(len(self.held))

    def _give(self, length: int) -> str:
        text, self.held = self.held[:length], self.held[length:]
        return text
