"""The experiments, one a file: a question, the trainings that answer it, the answer in words.

The file's name, with dashes, is the experiment's. Each holds one `EXPERIMENT`, which is explained
in train/study/plan.py and carried out by `python train/experiment.py NAME`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from specs import UserError
from specs.base import did_you_mean
from train.study.plan import Experiment


def names() -> list[str]:
    """Of all experiments."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def load(name: str) -> Experiment:
    """Raises `UserError` for an unknown name."""
    if name not in names():
        raise UserError(f"no experiment {name!r}" + did_you_mean(name, names()))
    return importlib.import_module(f"train.experiments.{name.replace('-', '_')}").EXPERIMENT
