"""What upstream lacks leaves for mlx_lm with a model file of ours and comes back as it was; what
that could not run is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from specs import UserError, spec_type
from tests.train.neighbourhood import adopted, change, exported, new_run
from train.files import sha256

pytestmark = [pytest.mark.xdist_group("neighbours"), pytest.mark.usefixtures("here")]
TINY = {arch: spec_type(arch).preset("tiny", vocab_size=256) for arch in ("bdh", "retnet")}
OUT = Path("out")


@pytest.mark.parametrize("arch, fields", [
    ("bdh", {}), ("bdh", {"share_layers": False, "score_scale": "linear"}),
    ("bdh", {"dropout": 0.25, "norm_eps": 1e-3, "n_head": 4}), ("retnet", {}),
    ("retnet", {"tie_embeddings": False, "embed_scale": False, "d_ff": None, "n_head": 2})],
    ids=str)
def test_a_round_trip_keeps_every_byte(arch: str, fields: dict[str, Any]) -> None:
    run = new_run("a", TINY[arch].replace(**fields))
    back = adopted(exported(run, OUT, "mlx-lm"), "b")
    assert back.spec == run.spec
    assert {file.name for file in OUT.iterdir()} == {
        f"{arch}.py", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    weights = [one.path / "step-00000000/model.safetensors" for one in (run, back)]
    assert sha256(weights[0]) == sha256(weights[1])
    again = exported(back, "again", "mlx-lm")
    assert all(sha256(file) == sha256(again / file.name) for file in OUT.iterdir())


@pytest.mark.parametrize("arch, fields, to, message", [
    ("bdh", {}, "hf", "transformers has no bdh: export it --to mlx-lm"),
    ("bdh", {"window": 8}, "mlx-lm", "window = 8 cannot be exported"),
    ("retnet", {}, "hf", "transformers has no retnet: export it --to mlx-lm")], ids=str)
def test_what_upstream_cannot_run_stays(arch: str, fields: dict[str, Any], to: str,
                                        message: str) -> None:
    run = new_run("a", TINY[arch].replace(**fields))
    with pytest.raises(UserError, match=message):
        exported(run, OUT, to)
    assert not list(Path().glob("*out*"))


def test_a_folder_that_does_not_fit_is_refused() -> None:
    exported(new_run("a", TINY["bdh"]), OUT, "mlx-lm")
    change(OUT / "config.json", n_layer=None)
    with pytest.raises(UserError, match="out cannot be adopted: 'n_layer' is missing"):
        adopted(OUT, "b")
    change(OUT / "config.json", n_layer=3, share_layers=False)
    with pytest.raises(UserError, match=r"encoder is \(2, 32, 64\), .* says \(3, 2, 32, 64\)"):
        adopted(OUT, "b")
    change(OUT / "config.json", share_layers=True)
    tensors = load_file(OUT / "model.safetensors")
    del tensors["encoder_v"]
    save_file(tensors, OUT / "model.safetensors")
    with pytest.raises(UserError, match="'encoder_v' is missing"):
        adopted(OUT, "b")
