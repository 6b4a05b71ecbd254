"""Batches of prompts: on a decoder that follows a script, then on the panels."""

import numpy as np
import pytest

from generate.sampling import Sampler
from generate.text import Speed, StopStrings, write
from specs import init_weights, spec_type
from specs.backend import available_backends, load_backend
from specs.errors import UserError
from train.tokenizer import make_tokenizer

BYTES = make_tokenizer("bytes", [])
GREEDY = Sampler(temperature=0)


class Script:
    """A backend and decoder in one: every row goes on as the text that it has begun does."""

    def __init__(self, *texts):
        self.texts = [text.encode() for text in texts]
        self.calls = []

    def decoder(self, model, batch_size=1, length=None, state="auto"):
        self.rows = [b""] * batch_size
        return self

    def read(self, tokens):
        self.calls.append(tokens.shape)
        self.rows = [row + bytes(new.tolist()) for row, new in zip(self.rows, tokens, strict=True)]
        logits = np.zeros((len(tokens), 300), np.float32)
        for i, row in enumerate(self.rows):
            text, = (text for text in self.texts if text.startswith(row))
            logits[i, text[len(row)]] = 1
        return logits

    def fork(self, rows):
        self.rows = [self.rows[i] for i in rows]
        return self


def texts(backend, prompts, sampler=GREEDY, model=None, tokenizer=BYTES, **options):
    """All that is written after each prompt, and why it ended."""
    text, finish = [""] * len(prompts), [None] * len(prompts)
    for piece in write(backend, model, tokenizer, prompts, sampler, **options):
        assert finish[piece.row] is None
        text[piece.row] += piece.text
        finish[piece.row] = piece.finish
    return text, finish


def test_prompts_of_all_lengths():
    script = Script("a cat sat here", "the very long story, told twice", "so")
    text, finish = texts(script, ["a cat", "the very long story,", "s"], max_tokens=1)
    assert text == [" ", " ", "o"]
    assert finish == ["length"] * 3


def test_what_is_known_is_read_in_one_call_and_finished_rows_are_dropped():
    script = Script("abcdefgh", "0123456789" * 3)
    speed = Speed()
    assert texts(script, ["ab", "0123456789" * 2], max_tokens=3, speed=speed)[0] == ["cde", "012"]
    assert script.calls == [(2, 2), (2, 1), (2, 1), (1, 16), (1, 1), (1, 1)]
    assert (speed.prefill_tokens, speed.decode_tokens) == (4, 5)


def test_a_text_ends_where_the_positions_do():
    script = Script("abcdefgh", "0123456789")
    text, finish = texts(script, ["ab", "0123"], max_tokens=9, max_length=6)
    assert (text, finish) == (["cdef", "45"], ["length"] * 2)
    with pytest.raises(UserError, match="a prompt of 6 tokens leaves no room: this model knows 6"):
        texts(script, ["abcdef"], max_length=6)


def test_the_prompt_is_no_part_of_the_text_and_an_empty_one_begins_a_line():
    assert texts(Script("\nOnce"), [""], max_tokens=4) == (["Once"], ["length"])


def test_utf8_across_tokens():
    script = Script("naïve 😀 née")
    pieces = list(write(script, None, BYTES, ["na"], GREEDY, max_tokens=11))
    assert "".join(piece.text for piece in pieces) == "ïve 😀 n"
    assert "�" not in "".join(piece.text for piece in pieces)


def test_a_character_cut_by_the_length_shows():
    assert texts(Script("na😀"), ["na"], max_tokens=3) == (["�"], ["length"])


@pytest.mark.parametrize(("stop", "wanted"), [
    (["END"], "one two "), (["two", "END"], "one "), (["two E", "wo"], "one t"),
    (["nothing"], "one two END thr"), (["thr"], "one two END "), (["three"], "one two END thr"),
], ids=str)
def test_stop_strings_across_tokens(stop, wanted):
    (text,), (finish,) = texts(Script("> one two END three"), ["> "], max_tokens=15, stop=stop)
    assert text == wanted
    assert finish == ("length" if wanted.endswith("END thr") else "stop")


def test_a_stop_string_in_the_prompt_stops_nothing():
    assert texts(Script("END. and more"), ["END."], max_tokens=4, stop=["END"])[0] == [" and"]


def test_stop_strings_hold_back_no_more_than_they_must():
    stop = StopStrings(["\n\n", "abc"])
    assert [stop.push(part) for part in ("x", "a", "b", "x", "\n", "y\n", "\nz", "q")] == [
        "x", "", "", "abx", "", "\ny", "", ""]
    assert stop.found and stop.flush() == ""


def test_words_keep_their_spaces():
    """A tokenizer with ▁ for a space drops it from the first token that it decodes."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    library = Library(models.WordLevel({"▁one": 0, "▁two": 1, "?": 2}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    tokenizer = type(BYTES)(library)

    class Two(Script):
        def read(self, tokens):
            return np.broadcast_to(np.array([0, 1, 0], np.float32), (len(tokens), 3))

    assert texts(Two(), ["one"], tokenizer=tokenizer, max_tokens=2)[0] == [" two two"]


def test_a_text_stopped_at_once_has_no_speed():
    assert str(Speed()) == "stopped before the first token"


@pytest.mark.parametrize(("options", "message"), [
    ({"max_tokens": 0}, "--max-tokens 0 must be at least 1"),
    ({"max_tokens": 10**30}, "must be at least 1 and below 2,147,483,648"),
    ({"stop": ["x", ""]}, "--stop ''"),
    ({"prompts": ["\udcff"]}, "lone surrogate"),
], ids=["no-token", "max_tokens", "stop", "surrogate"])
def test_bad_options_are_told_before_the_first_piece(options, message):
    with pytest.raises(UserError, match=message):
        write(Script(), None, BYTES, sampler=GREEDY, **{"prompts": ["a"], **options})


SPECS = {
    "bdh": spec_type("bdh").preset("demo", n_layer=2, block_size=24, n_embd=16, n_head=2,
                                   mlp_internal_dim_multiplier=4),
    "gpt": spec_type("gpt").preset("demo", n_layer=2, block_size=24, n_embd=16, n_head=2),
}
PROMPTS = ["To be", "", "It was the best of times, it was", "To be", "é"]
SAMPLER = Sampler(temperature=0.7, top_k=60, top_p=0.97, min_p=0.01, repetition_penalty=1.1,
                  seed=3)


def panel_texts(name, prompts, sampler=SAMPLER, state="auto", arch="bdh", **options):
    backend, spec = load_backend(name, "cpu"), SPECS[arch]
    weights = {name: 5 * w for name, w in init_weights(spec, 1).items()}
    model = backend.build(spec, weights)
    return texts(backend, prompts, sampler, model, state=state, **options)[0]


@pytest.mark.parametrize(("arch", "state"), [(arch, state) for arch, spec in SPECS.items()
                                              for state in spec.decode_kinds])
@pytest.mark.parametrize("name", available_backends())
def test_batch_equals_alone(name, arch, state):
    options = {"arch": arch, "state": state, "max_tokens": 20}
    together = panel_texts(name, PROMPTS, **options)
    alone = [panel_texts(name, [prompt], **options)[0] for prompt in PROMPTS]
    assert together == alone
    assert together[0] == together[3] and len(set(together)) == 4


@pytest.mark.skipif(len(available_backends()) < 2, reason="needs both backends")
@pytest.mark.parametrize("sampler", [SAMPLER, GREEDY], ids=["sampled", "greedy"])
@pytest.mark.parametrize("arch", SPECS)
def test_same_seed_same_text_on_both_backends(arch, sampler):
    mlx, torch = (panel_texts(name, PROMPTS, sampler, arch=arch, max_tokens=60)
                  for name in ("mlx", "torch"))
    assert mlx == torch


@pytest.mark.parametrize("name", available_backends())
def test_past_the_training_window(name):
    speed = Speed()
    panel_texts(name, ["a"], max_tokens=SPECS["bdh"].block_size + 20, speed=speed)
    assert speed.decode_tokens == SPECS["bdh"].block_size + 19


@pytest.mark.parametrize("name", available_backends())
def test_another_seed_another_text(name):
    one, two = (panel_texts(name, ["a"], Sampler(seed=seed), max_tokens=40) for seed in (1, 2))
    assert one != two
