import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specs.backend import Batch
from train.batches import batch, prefetch, split, validation_windows
from train.data import Corpus, fingerprint


def make_corpus(n_train: int, n_val: int) -> Corpus:
    """Tokens that tell their position: 0, 1, … in the training part, 30000, … in the other."""
    train = np.arange(n_train, dtype=np.uint16)
    val = np.arange(30_000, 30_000 + n_val, dtype=np.uint16)
    return Corpus(train, val, 1.0, 1.0, fingerprint(train, val), "positions")


CORPUS = make_corpus(1000, 101)
SEEDS = st.integers(0, 2**40)
STEPS = st.integers(0, 10**7)
SIZES = st.integers(1, 40)


@settings(deadline=None)
@given(seed=SEEDS, step=STEPS, rows=SIZES, n_train=st.integers(2, 200), data=st.data())
def test_windows_are_contiguous_and_stay_in_the_training_part(seed, step, rows, n_train, data):
    block = data.draw(st.integers(1, n_train - 1))
    got = batch(make_corpus(n_train, 1), seed, step, rows, block)
    assert got.tokens.shape == got.targets.shape == (rows, block)
    assert got.tokens.dtype == got.targets.dtype == np.int32
    assert (got.targets == got.tokens + 1).all()
    assert (got.tokens[:, 1:] == got.targets[:, :-1]).all()
    assert got.targets.max() < n_train
    assert got.keys is None


def test_first_and_last_window_are_drawn():
    starts = batch(make_corpus(12, 1), 0, 0, 200, 8).tokens[:, 0]
    assert set(starts) == {0, 1, 2, 3}


@given(seed=SEEDS, step=STEPS, rows=SIZES, more=SIZES)
def test_a_batch_is_pure_and_a_larger_one_begins_with_it(seed, step, rows, more):
    few = batch(CORPUS, seed, step, rows, 16, dropout=True)
    many = batch(CORPUS, np.int64(seed), np.int64(step), rows + more, 16, dropout=True)
    assert (few.tokens == many.tokens[:rows]).all()
    assert (few.keys == many.keys[:rows]).all()
    assert few.keys.dtype == np.int32 and few.keys.min() >= 0


@pytest.mark.parametrize("change", ["seed", "step", "corpus"])
def test_what_a_batch_depends_on(change):
    other = replace(CORPUS, fingerprint="another") if change == "corpus" else CORPUS
    first = batch(CORPUS, 1, 1, 8, 16, dropout=True)
    second = batch(other, 1 + (change == "seed"), 1 + (change == "step"), 8, 16, dropout=True)
    assert (first.tokens != second.tokens).any()
    assert (first.keys != second.keys).any() == (change != "corpus")


def test_the_draws_are_the_same_for_ever():
    """Runs that were begun with these must go on: other numbers break every resume."""
    got = batch(replace(CORPUS, fingerprint="0" * 32), seed=1337, step=7, batch_size=4,
                block_size=8, dropout=True)
    assert got.tokens[:, 0].tolist() == [747, 83, 764, 918]
    assert got.keys.tolist() == [760758308, 1829144172, 914103306, 1504194158]


@given(rows=SIZES, micro=SIZES, dropout=st.booleans())
def test_split_is_the_batch_in_order(rows, micro, dropout):
    whole = batch(CORPUS, 3, 5, rows, 4, dropout)
    parts = split(whole, micro)
    assert [len(part.tokens) for part in parts[:-1]] == [micro] * (len(parts) - 1)
    assert 1 <= len(parts[-1].tokens) <= micro
    for name in ("tokens", "targets") + ("keys",) * dropout:
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert (joined == getattr(whole, name)).all()
    assert dropout or all(part.keys is None for part in parts)


@given(n_val=st.integers(2, 300), most=SIZES, data=st.data())
def test_validation_windows_lie_in_the_held_out_part_and_never_overlap(n_val, most, data):
    block = data.draw(st.integers(1, n_val - 1))
    tokens, targets = validation_windows(make_corpus(2, n_val), block, most)
    assert tokens.shape == targets.shape == (min(most, (n_val - 1) // block), block)
    assert (targets == tokens + 1).all()
    assert tokens.min() >= 30_000 and targets.max() < 30_000 + n_val
    assert len(np.unique(targets)) == targets.size


def test_validation_windows_are_spread_evenly():
    tokens, _ = validation_windows(make_corpus(2, 1001), 10, 4)
    assert (tokens[:, 0] - 30_000).tolist() == [0, 250, 500, 750]


@pytest.mark.parametrize("start, stop, depth", [(0, 10, 2), (5, 6, 4), (3, 3, 2), (0, 7, 1)])
def test_prefetch_is_map(start, stop, depth):
    squares = [i * i for i in range(start, stop)]
    assert list(prefetch(lambda i: i * i, start, stop, depth)) == squares


def test_prefetch_works_ahead_but_not_further_than_asked():
    made = []
    ahead = prefetch(lambda i: made.append(i) or i, 0, 100, depth=3)
    next(ahead)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2, 3]
    ahead.close()


def test_prefetch_raises_where_the_value_would_have_come():
    ahead = prefetch(lambda i: 1 // (2 - i), 0, 10, depth=4)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_prefetch_ends_its_thread_when_closed_early():
    ahead = prefetch(lambda i: Batch(np.zeros(1), np.zeros(1)), 0, 10**9)
    next(ahead)
    assert any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    ahead.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
