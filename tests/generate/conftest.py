"""A run with untrained weights, for the tests of what writes with it."""

import pytest

from specs import init_weights, spec_type
from train import checkpoint
from train.rundir import RunDir
from train.settings import Settings
from train.tokenizer import make_tokenizer


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """runs/tiny below the current folder, with checkpoints at steps 10 and 20."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    spec = spec_type("bdh").preset("demo", n_layer=1, n_embd=8, mlp_internal_dim_multiplier=4)
    run = RunDir.create("tiny", spec, Settings(), "demo", make_tokenizer("bytes", []), {}, {},
                        lambda folder: None)
    for step in (10, 20):
        weights = init_weights(spec, step)
        checkpoint.save(run.path, checkpoint.TrainState(step=step, val_loss=3.5 - step / 20),
                        weights, {}, {})
    return run
