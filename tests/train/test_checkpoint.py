"""A checkpoint exists whole or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from specs import UserError
from train import checkpoint
from train.checkpoint import TrainState
from train.files import new_folder, write_text

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
OPTIMIZER = {"m.w": np.ones((2, 3), np.float32), "step": np.array(7)}


def save(run: Path, step: int, val_loss: float | None = None) -> Path:
    return checkpoint.save(run, TrainState(step=step, val_loss=val_loss), WEIGHTS, OPTIMIZER,
                           {"mlx": "1"})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 3, 1.5)
    state, (weights, optimizer), remarks = checkpoint.load_last(tmp_path)
    assert state == TrainState(step=3, val_loss=1.5) and not remarks
    np.testing.assert_array_equal(weights["w"], WEIGHTS["w"])
    assert optimizer["step"].shape == () and optimizer["step"] == 7


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "foreign"])
def test_a_damaged_checkpoint_is_found_and_passed_over(tmp_path: Path, file: str,
                                                       damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    else:
        other = checkpoint.save(tmp_path / "other", TrainState(step=2), {"w": WEIGHTS["w"] + 1},
                                {**OPTIMIZER, "m.w": WEIGHTS["w"]}, {"torch": "2"})
        path.write_bytes((other / file).read_bytes())
    state, _, remarks = checkpoint.load_last(tmp_path)
    assert state.step == 1 and len(remarks) == 1


def test_any_flipped_byte_of_the_state_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1, 2.5)
    content = (path / "state.json").read_bytes()
    for place in range(len(content) - 1):  # the last one is a newline
        changed = bytes([content[place] ^ 1])
        if changed.isspace() and content[place : place + 1].isspace():
            continue
        (path / "state.json").write_bytes(content[:place] + changed + content[place + 1 :])
        with pytest.raises(UserError):
            checkpoint.load(path)


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    file = save(tmp_path, 1) / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(UserError, match="another version"):
        checkpoint.load_last(tmp_path)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint"):
        checkpoint.load_last(tmp_path)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("train.files.flush_file", full)
    with pytest.raises(OSError):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_pruning_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        save(tmp_path, step, loss)
    (tmp_path / ".step-00000006.99.tmp").mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert checkpoint.steps(tmp_path) == [2, 4, 5]
    assert checkpoint.best_step(tmp_path) == 2
    assert not list(tmp_path.glob(".*"))


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    write_text(file, "old")
    monkeypatch.setattr("train.files.flush", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_text(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a") as aside:
        (aside / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
