"""Checkpoints of a run: RUN/step-00001000/{model,optimizer}.safetensors and state.json.

A checkpoint exists whole or not at all; state.json holds a sha256 of the other files and the id of
its run. They are the same whichever backend wrote them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from specs.backend import Arrays
from specs.errors import UserError
from train.files import new_folder, remove_folder, sha256, write_json

FORMAT = 1
FILES = ("model.safetensors", "optimizer.safetensors")
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64,
           "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}


@dataclass(frozen=True)
class TrainState:
    """What a run needs besides weights and optimizer state to go on as if never stopped.

    `step`: optimizer updates asked for; `tokens`: tokens seen; `elapsed`: seconds trained;
    `skipped`: updates left out for a loss or gradient that was not finite; `val_loss`: nats per
    token, where it was measured at this very step.
    """

    step: int = 0
    tokens: int = 0
    elapsed: float = 0.0
    skipped: int = 0
    val_loss: float | None = None


def folder(run: Path, step: int) -> Path:
    return run / f"step-{step:08d}"


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints in a run directory, in order."""
    matches = (re.fullmatch(r"step-(\d{8})", path.name) for path in run.glob("step-*"))
    return sorted(int(match[1]) for match in matches if match)


def save(run: Path, state: TrainState, weights: Arrays, optimizer: Arrays,
         versions: dict[str, str]) -> Path:
    """Write one checkpoint; nothing is left behind if it fails: `OSError`, as of a full disk."""
    path = folder(run, state.step)
    with new_folder(path) as aside:
        for name, arrays in zip(FILES, (weights, optimizer), strict=True):
            save_arrays(aside / name, arrays)
        content = {"format": FORMAT, "run": run_id(run), **asdict(state), "versions": versions,
                   "sha256": {name: sha256(aside / name) for name in FILES}}
        write_json(aside / "state.json", {**content, "own_sha256": digest(content)})
    return path


def save_arrays(file: Path, arrays: Arrays, format: str = "np") -> None:
    """A safetensors file. Raises `OSError`, as of a full disk."""
    contiguous = {key: np.asarray(array, order="C") for key, array in arrays.items()}
    try:
        save_file(contiguous, file, metadata={"format": format})
    except SafetensorError as error:  # which error of the system it was, its text alone says
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def run_id(run: Path) -> str | None:
    """What tells this run from all others; None where its config.json does not say."""
    try:
        return json.loads((run / "config.json").read_text(encoding="utf-8")).get("id")
    except FileNotFoundError:
        return None


def digest(content: dict[str, Any]) -> str:
    """What state.json says of itself, so that a changed number in it shows."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's state.json. Raises `UserError` if it cannot be used."""
    try:
        state = dict(json.loads((path / "state.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is no checkpoint: it has no state.json") from None
    except (ValueError, TypeError):
        raise UserError(f"{path / 'state.json'} is damaged") from None
    if state.get("format") != FORMAT:
        raise UserError(f"{path} has format {state.get('format')!r}, this version reads {FORMAT}: "
                        "it was written by another version of Diptych")
    if digest({k: v for k, v in state.items() if k != "own_sha256"}) != state.get("own_sha256"):
        raise UserError(f"{path / 'state.json'} is damaged: its content is not what was written")
    if state.get("run") != run_id(path.parent):
        raise UserError(f"{path} belongs to another run")
    return state


def load(path: Path, parts: tuple[str, ...] = FILES) -> tuple[TrainState, list[Arrays]]:
    """State and arrays of one checkpoint, each file checked against its sha256.

    Raises `UserError` that names the file which is missing, truncated or changed.
    """
    state = read_state(path)
    arrays = []
    for name in parts:
        file = path / name
        try:
            if sha256(file) != state["sha256"].get(name):
                raise UserError(f"{file} is damaged: its content is not what was written")
            arrays.append(load_arrays(file))
        except FileNotFoundError:
            raise UserError(f"{file} is missing") from None
    fields = TrainState.__dataclass_fields__
    return TrainState(**{key: state[key] for key in fields}), arrays


def load_arrays(file: Path) -> Arrays:
    """A safetensors file as numpy arrays; bfloat16, which numpy lacks, becomes float32."""
    try:
        found = deserialize(file.read_bytes())
        return {name: _array(**tensor) for name, tensor in found}
    except (SafetensorError, TypeError, KeyError) as error:
        raise UserError(f"{file} is no safetensors file that can be read: {error}") from None


def _array(dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(
            shape)
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)


def load_last(run: Path, parts: tuple[str, ...] = FILES,
              ) -> tuple[TrainState, list[Arrays], list[str]]:
    """The last checkpoint that is whole, and a remark on each later one that is not."""
    remarks = []
    for step in reversed(steps(run)):
        try:
            state, arrays = load(folder(run, step), parts)
        except UserError as error:
            if not folder(run, step).exists():  # removed meanwhile, by a run in training: look anew
                return load_last(run, parts)
            remarks.append(f"{error}; going back to an earlier checkpoint")
            continue
        return state, arrays, remarks
    raise UserError(remarks[0].partition(";")[0] + ", and no earlier checkpoint is whole"
                    if remarks else f"{run} has no checkpoint")


def set_aside(run: Path, step: int) -> None:
    """Rename the checkpoints after `step`, which a run resumed from there leaves behind."""
    for later in steps(run):
        if later > step:
            path = folder(run, later)
            number = len(list(run.glob(f"{path.name}.aside*")))
            path.rename(path.with_name(f"{path.name}.aside{number or ''}"))


def best_loss(run: Path) -> float:
    """The lowest validation loss of any checkpoint; infinite without one."""
    return min(_losses(run).values(), default=math.inf)


def best_step(run: Path) -> int | None:
    """The step of the checkpoint with the lowest validation loss."""
    losses = _losses(run)
    return min(losses, key=losses.__getitem__) if losses else None


def _losses(run: Path) -> dict[int, float]:
    losses = {}
    for step in steps(run):
        try:
            loss = read_state(folder(run, step))["val_loss"]
        except UserError:
            continue
        if loss is not None:
            losses[step] = loss
    return losses


def prune(run: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints and the best one, and what a kill left behind."""
    for rest in run.glob(".*.tmp"):
        if rest.is_dir():
            shutil.rmtree(rest)
        else:
            rest.unlink()
    spared = {*steps(run)[-keep:], best_step(run)}
    for step in steps(run):
        if step not in spared:
            remove_folder(folder(run, step))
