"""Associative recall: the task is right, and the command trains on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import recall
from bench.associations import Recall
from bench.recall_sheets import found_order
from specs import UserError, architectures
from specs.backend import BACKENDS, load_backend

TASK = Recall(length=48, vocab_size=40)
SPARSE = Recall(length=48, vocab_size=40, sparse=True)
each_number = pytest.mark.parametrize("pairs", [1, 5, 16])


@each_number
@pytest.mark.parametrize("task", [TASK, SPARSE], ids=["dense", "sparse"])
def test_who_looks_up_is_always_right(task: Recall, pairs: int) -> None:
    batch = task.batch(seed=0, step=3, pairs=pairs, rows=50)
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        told = dict(zip(tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        assert len(told) == len(set(told.values())) == pairs
        assert all(1 <= k < 20 <= v < 40 for k, v in told.items())
        asked = np.flatnonzero(targets >= 0)
        assert asked.min() >= 2 * pairs
        assert all(told[tokens[t]] == targets[t] for t in asked)
        if task.sparse:
            assert sorted(tokens[asked]) == sorted(told)
            assert not np.delete(tokens, asked)[2 * pairs :].any()
        else:
            assert np.array_equal(tokens[asked + 1], targets[asked])
    assert batch.counted == 50 * (pairs if task.sparse else (48 - 2 * pairs) // 2)


def test_texts_belong_to_seed_and_step() -> None:
    batch = TASK.batch(1, 2, 5, 8)
    for same in (TASK.batch(1, 2, 5, 8), TASK.batch(1, 2, 5, 20)):
        assert np.array_equal(batch.tokens, same.tokens[:8])
        assert np.array_equal(batch.targets, same.targets[:8])
    for other in (TASK.batch(0, 2, 5, 8), TASK.batch(1, 3, 5, 8)):
        assert (batch.tokens != other.tokens).any(axis=1).all()


def test_most_are_asked_for_soon() -> None:
    asked = SPARSE.batch(0, 0, 2, 2000).targets[:, 4:] >= 0
    first, last = asked[:, :4].sum(), asked[:, -4:].sum()
    assert first > 8 * last > 0


@pytest.mark.parametrize("pairs", [0, 17, 20])
def test_too_many_pairs_are_refused(pairs: int) -> None:
    with pytest.raises(UserError, match="choose 1 to 16"):
        TASK.require(pairs)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command, with its processes in this one; which trainings these were."""
    monkeypatch.setattr("train.files.flush", lambda _: None)

    def run(*options: str) -> list[tuple[str, ...]]:
        asked = []

        def here(*which: str) -> dict[str, Any]:
            asked.append(which)
            args = recall.parser().parse_args(sys.argv[1:])
            for name, value in recall.FULL.items():
                if getattr(args, name) is None:
                    setattr(args, name, recall.QUICK.get(name, value))
            arch, lr, seed = which
            task = Recall(args.length, args.vocab, args.sparse)
            return recall.measure(args, load_backend(args.backend, "cpu"), task,
                                  recall.model_of(args, arch), float(lr), int(seed))

        monkeypatch.setattr(recall, "again", here)
        monkeypatch.setattr(sys, "argv", ["recall.py", "--quick", "--out", str(tmp_path),
                                          *options])
        recall.main()
        return asked

    return run


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_architecture_is_trained(call: Any, tmp_path: Path, backend: str,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    asked = call("--backend", backend, "--steps", "2")
    assert asked == [(arch, "0.01", "0") for arch in architectures()]
    document = json.loads((tmp_path / "recall.json").read_text())
    for arch, model in document["models"].items():
        assert model["parameters"] == pytest.approx(60_000, rel=0.02)
        assert document["measured"][f"{arch} 0.01 0"]["accuracy"].keys() == {"2", "4"}
    page, said = (tmp_path / "recall.md").read_text(), capsys.readouterr().out
    assert "Who says any of the values told is right in 38%." in page and "gpt" in said
    assert (tmp_path / "recall.png").stat().st_size > 10_000


@pytest.mark.needs(*BACKENDS)
def test_rates_seeds_and_going_on(call: Any, tmp_path: Path) -> None:
    options = ["--arch", "gpt", "--rates", "1e-3", "1e-2", "--steps", "30", "--pairs", "1"]
    asked = call(*options, "--seeds", "2")
    assert asked[:2] == [("gpt", "0.001", "0"), ("gpt", "0.01", "0")]
    found = json.loads((tmp_path / "recall.json").read_text())
    best = max(("0.001", "0.01"), key=lambda lr: found["measured"][f"gpt {lr} 0"]["accuracy"]["1"])
    assert asked[2:] == [("gpt", best, "1")]
    assert call(*options, "--seeds", "2") == []
    with pytest.raises(UserError, match="made with another seeds"):
        call(*options, "--seeds", "1")
    call(*options, "--seeds", "2", "--arch", "hyena")
    page = (tmp_path / "recall.md").read_text()
    assert "| gpt |" in page and "| hyena |" in page  # what was trained before is still there


def test_the_order_of_the_families() -> None:
    shares = {"gpt": 0.9, "moe": 0.5, "mamba2": 0.7, "hyena": 0.71, "toeplitz": 0.1}
    document = {"about": {"seeds": 1, "pairs": [4]},
                "models": {arch: {"rate": 0.01} for arch in shares},
                "measured": {f"{arch} 0.01 0": {"accuracy": {"4": share}}
                             for arch, share in shares.items()}}
    assert found_order(document) == (
        "The order that the literature reports appears here: attention 90% (gpt), recurrent "
        "states 70% (mamba2), long convolutions 71% (hyena). Who says any of the values told is "
        "right in 25%.")
    alone = {**document, "models": {"gpt": {"rate": 0.01}}}
    assert "Of the families one was trained here: attention 90% (gpt)." in found_order(alone)
    document["measured"]["mamba2 0.01 0"]["accuracy"]["4"] = 0.95  # type: ignore[index]
    assert "does not appear here" in found_order(document)
    for arch in ("mamba2", "hyena"):
        document["measured"][f"{arch} 0.01 0"]["accuracy"]["4"] = 0.9  # type: ignore[index]
    assert "do not part here" in found_order(document)
