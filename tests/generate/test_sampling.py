"""Each filter against a plain reference, and the stream of random numbers."""

import numpy as np
import pytest

from generate.sampling import Sampler, uniform
from specs.errors import UserError

V = 40
NOTHING = np.array([], np.int64)


@pytest.fixture(params=range(3))
def logits(request):
    return np.random.default_rng(request.param).normal(0, 2, V).astype(np.float32)


def softmax(logits, temperature=1.0):
    weights = [np.exp(float(x) / temperature) for x in logits]
    return {i: w / sum(weights) for i, w in enumerate(weights)}


def renormalised(p, kept):
    return [p[i] / sum(p[j] for j in kept) if i in kept else 0 for i in range(V)]


def likeliest_first(p):
    return sorted(p, key=lambda i: -p[i])


def check(sampler, logits, wanted, read=NOTHING):
    np.testing.assert_allclose(sampler.probabilities(logits, read), wanted, rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_temperature(logits, temperature):
    p = softmax(logits, temperature)
    check(Sampler(temperature=temperature), logits, renormalised(p, range(V)))


@pytest.mark.parametrize("k", [1, 5, V, V + 10])
def test_top_k(logits, k):
    p = softmax(logits)
    check(Sampler(temperature=1, top_k=k), logits, renormalised(p, likeliest_first(p)[:k]))


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9])
def test_top_p(logits, top_p):
    p = softmax(logits)
    kept = []
    for i in likeliest_first(p):
        if sum(p[j] for j in kept) < top_p:
            kept.append(i)
    check(Sampler(temperature=1, top_p=top_p), logits, renormalised(p, kept))


@pytest.mark.parametrize("min_p", [0.01, 0.2, 1.0])
def test_min_p(logits, min_p):
    p = softmax(logits)
    kept = [i for i in p if p[i] >= min_p * max(p.values())]
    check(Sampler(temperature=1, min_p=min_p), logits, renormalised(p, kept))


def test_repetition_penalty_counts_each_token_once(logits):
    read = np.array([3, 7, 7, 7, logits.argmax()])
    punished = [x if i not in read else x / 1.5 if x > 0 else x * 1.5
                for i, x in enumerate(map(float, logits))]
    check(Sampler(temperature=1, repetition_penalty=1.5), logits,
          renormalised(softmax(punished), range(V)), read)


def test_filters_come_one_after_the_other(logits):
    p = softmax(logits, 2.0)
    three = likeliest_first(p)[:3]
    top = {i: p[i] / sum(p[j] for j in three) for i in three}
    kept = three[:1] if top[three[0]] >= 0.5 else three[:2]  # of the three, not of all
    check(Sampler(temperature=2, top_k=3, top_p=0.5), logits, renormalised(p, kept))


def test_greedy_takes_the_first_of_equals():
    logits = np.array([0, 5, 5, 1], np.float32)
    assert Sampler(temperature=0)(logits, NOTHING) == 1
    assert Sampler(temperature=0, repetition_penalty=2)(logits, np.array([1])) == 2


@pytest.mark.parametrize("temperature", [5e-324, 1e-30])
def test_a_tiny_temperature_is_greedy(logits, temperature):
    assert Sampler(temperature=temperature)(logits, NOTHING) == logits.argmax()


def test_draws_follow_the_probabilities(logits):
    sampler = Sampler(temperature=1, min_p=0.05, seed=5)
    read = np.zeros(4000, np.int64)
    draws = [sampler(logits, read[:n]) for n in range(len(read))]
    p = sampler.probabilities(logits, NOTHING)
    counts = np.bincount(draws, minlength=V)
    assert (counts[p == 0] == 0).all()
    deviation = np.sqrt(len(read) * p * (1 - p))
    assert (abs(counts - len(read) * p) <= 4 * deviation).all()


def test_rounding_changes_no_draw(logits):
    """Tokens that are almost equally likely swap ranks by rounding, but not places in a draw."""
    sampler, logits = Sampler(temperature=1), np.round(logits)
    nudged = logits + np.random.default_rng(1).normal(0, 1e-6, V).astype(np.float32)
    read = np.zeros(500, np.int64)
    same = [sampler(logits, read[:n]) == sampler(nudged, read[:n]) for n in range(len(read))]
    assert all(same)


def test_random_numbers_belong_to_seed_and_position():
    numbers = [uniform(seed, position) for seed in (0, 1, -3) for position in range(500)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    assert abs(np.mean(numbers) - 0.5) < 0.03
    assert uniform(1, 7) == uniform(1, 7) == pytest.approx(0.6474669979274366, abs=1e-15)


@pytest.mark.parametrize("bad", [
    {"temperature": -1}, {"temperature": float("nan")}, {"temperature": float("inf")},
    {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 2},
    {"repetition_penalty": 0}, {"repetition_penalty": float("nan")},
], ids=str)
def test_out_of_range(bad):
    (name, value), = bad.items()
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value} must be "):
        Sampler(**bad)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers(value, temperature):
    with pytest.raises(UserError, match="position 2 is not finite: try --dtype float32"):
        Sampler(temperature=temperature)(np.array([0, value], np.float32), np.array([0, 0]))
