"""An exported RetNet in mlx_lm, with no code of ours but its model file: the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.budget import Verdict, distance
from specs import Spec, spec_type
from tests.models.forms import weights_of
from tests.models.test_bdh import tokens
from tests.models.test_bdh_for_mlx_lm import generated, in_batches, in_pieces, load
from tests.train.neighbourhood import BYTES, agrees, greedy, verdict
from train.neighbours.folder import write_folder
from train.neighbours.retnet import to_upstream

pytestmark = [pytest.mark.needs("mlx"), pytest.mark.xdist_group("neighbours")]

TINY = spec_type("retnet").preset("tiny")
FIELDS: dict[str, dict[str, Any]] = {
    "paper": {}, "torchscale": {"tie_embeddings": False, "n_head": 2, "d_ff": None},
    "narrow": {"embed_scale": False, "v_dim_multiplier": 1, "n_head": 16, "norm_eps": 1e-3}}
each_form = pytest.mark.parametrize("form", FIELDS)
MISTAKES = {
    "another rate of forgetting": ("(-5 - head)", "(-4 - head)"),
    "a token does not see itself": ("mx.tril(decay(apart))", "mx.tril(decay(apart), -1)"),
    "the state is not read": ("if state is not None", "if False"),
    "the state forgets nothing": ("decay(last)[..., None] * state", "state"),
    "written the wrong way round": ("decay(last - near)", "decay(near - 1)"),
    "turned the other way": ("odd * cos + even * sin", "odd * cos - even * sin"),
    "angles without their last end": ("max(pairs - 1, 1)", "pairs"),
    "heads mixed up": (".astype(x.dtype).swapaxes(1, 2)", ".astype(x.dtype)"),
    "eps of the head norm": ("1e-24", "1e-5"),
    "embedding's scale forgotten": ("if self.args.embed_scale", "if False"),
}


def export(spec: Spec, path: Path) -> Path:
    write_folder(path, to_upstream(spec, weights_of(spec), "mlx-lm"), BYTES.to_json(),
                 path / "none")
    return path


def truth(spec: Spec, data: np.ndarray) -> Verdict:
    return verdict(spec, weights_of(spec), data)


@each_form
@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 200], ids=lambda T: f"T{T}")
def test_logits(form: str, T: int, tmp_path: Path) -> None:
    import mlx.core as mx

    spec = TINY.replace(**FIELDS[form])
    model, data = load(export(spec, tmp_path / "model")), tokens(spec, 2, T)
    assert agrees(np.array(model(mx.array(data))), truth(spec, data))


@each_form
@pytest.mark.parametrize("pieces", [[90], [1] * 24, [7, 1, 70, 1, 20]], ids=str)
def test_pieces(form: str, pieces: list[int], tmp_path: Path) -> None:
    spec = TINY.replace(**FIELDS[form])
    model, data = load(export(spec, tmp_path / "model")), tokens(spec, 3, sum(pieces))
    assert agrees(in_pieces(model, data, pieces), truth(spec, data))


def test_a_mistake_shows(tmp_path: Path) -> None:
    path, data, pieces = export(TINY, tmp_path / "model"), tokens(TINY, 2, 91), [70, 20, 1]
    exact, file = truth(TINY, data), path / "retnet.py"
    assert agrees(in_pieces(load(path), data, pieces), exact)
    code = file.read_text(encoding="utf-8")
    for mistake, (right, wrong) in MISTAKES.items():
        assert code.count(right) == 1, mistake
        file.write_text(code.replace(right, wrong), encoding="utf-8")
        assert not agrees(in_pieces(load(path), data, pieces), exact), mistake


def test_positions_far_away_are_exact(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import ArraysCache

    spec: Any = TINY.replace(n_layer=1, n_head=1)
    model, cache = load(export(spec, tmp_path / "model")), ArraysCache(2)
    cache[1] = mx.array([1_000_000_000, 0])
    cos, sin, _, _ = model.positions(mx.zeros((2, 3), mx.int32), cache)
    for row, start in enumerate((1_000_000_000, 0)):
        angle = spec.rotary(start, 3)  # in float64, of which ten digits are whole turns
        np.testing.assert_allclose(cos[row, 0], np.cos(angle), atol=6e-7)
        np.testing.assert_allclose(sin[row, 0], np.sin(angle), atol=6e-7)


@each_form
def test_greedy_tokens(form: str, tmp_path: Path) -> None:
    spec = TINY.replace(**{**FIELDS[form], "tie_embeddings": False})  # tied, it repeats itself
    prompt = tokens(spec, 1, 50)[0]
    wanted = greedy("mlx", spec, weights_of(spec), prompt, 12)
    assert generated(load(export(spec, tmp_path / "model")), prompt.tolist()) == wanted
    assert len(set(wanted)) > 3


def test_prompts_of_several_lengths_at_once(tmp_path: Path) -> None:
    """As mlx_lm.server does: padding is neither written nor a time in which to forget."""
    model = load(export(TINY.replace(tie_embeddings=False), tmp_path / "model"))
    prompts = [tokens(TINY, 1, T, seed=T)[0].tolist() for T in (5, 70, 37, 1)]
    counts = [4, 12, 9, 12]
    assert in_batches(model, prompts, counts) == [
        generated(model, *one) for one in zip(prompts, counts, strict=True)]


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    import mlx.core as mx

    model = load(export(TINY, tmp_path / "model"))
    for T in (1, 40, 300):
        cache = model.make_cache()
        model(mx.array(tokens(TINY, 1, T)), cache)
        # and how many tokens were read
        assert sum(layer.nbytes for layer in cache) == TINY.decode_state_bytes(T) + 4


@pytest.mark.parametrize("form, options, least, most", [
    ("torchscale", {"quantize": True, "q_bits": 8, "q_group_size": 32}, 1e-3, 0.05),
    ("paper", {"quantize": True, "q_bits": 4, "q_group_size": 32}, 1e-2, 0.5),
    ("paper", {"dtype": "bfloat16"}, 1e-3, 0.05), ("narrow", {"dtype": "float16"}, 1e-4, 0.01)],
    ids=str)
def test_converted(form: str, options: dict[str, Any], least: float, most: float,
                   tmp_path: Path) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm import convert

    spec = TINY.replace(**{**FIELDS[form], "d_ff": 64})
    convert(str(export(spec, tmp_path / "model")), str(tmp_path / "other"), trust_remote_code=True,
            **options)
    model, data = load(tmp_path / "other"), tokens(spec, 2, 100)
    quantized = isinstance(model.layers[-1].mixer.k_proj, nn.QuantizedLinear)
    assert quantized == ("quantize" in options)
    logits, exact = np.array(model(mx.array(data)).astype(mx.float32)), truth(spec, data).truth
    size = np.linalg.norm(logits)
    assert least < distance(logits, exact["logits"]) / size < most
    assert distance(in_pieces(model, data, [70, 1, 1, 28]), logits) < most / 10 * size
