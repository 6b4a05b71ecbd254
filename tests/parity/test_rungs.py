"""Right panels raise no alarm, on a plain model and on odd ones.

The long form, with rows of 500 tokens and whole training runs:
python parity/check.py --random 20
"""

from __future__ import annotations

import numpy as np
import pytest

from parity.cases import edge_cases, lively_weights, random_case, random_spec
from parity.ladder import RUNGS, climb, result
from parity.locate import locate
from specs import Spec, spec_type
from specs.backend import Backend
from specs.base import Param
from tests.parity.conftest import small_subject, subject_of


@pytest.mark.parametrize("rung", RUNGS)
def test_small_model_climbs(rung: str, panels: dict[str, Backend]) -> None:
    subject = small_subject(panels)
    found = result(subject, rung, RUNGS[rung](subject))
    assert found.ok and not found.divergences
    assert {panel for measure in found.measures for panel in measure.errors} == set(panels)


@pytest.mark.parametrize("seed", range(4))
def test_odd_model_climbs(seed: int, panels: dict[str, Backend]) -> None:
    subject = subject_of(random_spec("bdh", seed).replace(block_size=40), panels, seed)
    quick = [rung for rung in RUNGS if rung not in ("trajectory", "resume")]
    assert not [(found.rung, found.worst()) for found in climb(subject, quick) if not found.ok]


def test_long_context_is_chunked_alike(panels: dict[str, Backend]) -> None:
    """513 tokens are two chunks and one token: the chunkwise form, and a cache that grew."""
    subject = small_subject(panels, n_layer=1, block_size=640)
    assert max(case.batch.tokens.shape[1] for case in edge_cases(subject.spec, 0)) == 513
    for found in climb(subject, ["logits", "gradients", "decoding"]):
        assert found.ok, found.worst()


def test_random_specs_differ_and_repeat() -> None:
    specs = [random_spec("bdh", seed) for seed in range(12)]
    assert specs == [random_spec("bdh", seed) for seed in range(12)]
    for name in ("n_layer", "n_embd", "n_head", "share_layers", "score_scale", "window"):
        assert len({getattr(spec, name) for spec in specs}) > 1, name


def test_edge_cases_surround_the_window() -> None:
    spec = spec_type("bdh").preset("tiny", window=9)
    lengths = {case.batch.tokens.shape[1] for case in edge_cases(spec, 0)}
    assert {1, 2, 8, 9, 10, 63, 64, 65, 513} <= lengths


def test_lively_weights_leave_no_constant_tensor() -> None:
    class Constant(Spec):
        def params(self):  # type: ignore[no-untyped-def]
            return (Param("norm.weight", (8,), lambda rng, shape: np.ones(shape), "vector"),
                    Param("o_proj.weight", (4, 8), lambda rng, shape: np.zeros(shape), "hidden"))

    weights = lively_weights(Constant(), 0)
    assert all(np.ptp(value) > 0 and value.dtype == np.float32 for value in weights.values())
    assert abs(weights["norm.weight"].mean() - 1) < 0.2


@pytest.mark.parametrize(("B", "T"), [(3, 1), (2, 2), (2, 5), (2, 37)])
def test_right_panels_part_nowhere(B: int, T: int, panels: dict[str, Backend]) -> None:
    """Two tokens matter: a norm then makes the gradient at the scores zero but for rounding."""
    subject = small_subject(panels)
    assert not locate(subject, random_case(subject.spec, B, T, 0), suspects=panels)
