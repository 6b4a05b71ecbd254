"""A choice within roundoff raises no alarm, is told, and is not what the other tests rest on."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from parity.cases import edge_cases, random_case
from parity.choices import hesitations
from parity.ladder import RUNGS, result
from parity.report import Report
from parity.subject import Subject, attempt
from specs.backend import Backend
from tests.parity.conftest import small_subject
from tests.parity.test_faults_moe import FAULTS

SPECS = [{}, *[fault.spec for fault in FAULTS if fault.spec]]


def torn(panels: dict[str, Backend]) -> Subject:
    """A model whose first router is torn between two experts for one token of a case."""
    subject = small_subject(panels, "moe")
    case = random_case(subject.spec, 1, 40, 0)
    exact = attempt(subject.spec, subject.referee, "float64", case.batch, subject.weights)
    call = next(call for call in subject.referee.trace(exact.model, case.batch)
                if call.path == "layers.0.mlp.router")
    x, scores = call.inputs[0][0, -1], call.output[0, -1]
    second, third = np.argsort(-scores)[1:3]
    router = subject.weights["layers.0.mlp.router.weight"]
    router[third] += ((scores[second] - scores[third]) * x / (x @ x)).astype(np.float32)
    return subject


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_margins_of_the_tests_are_clear(spec: dict, panels: dict[str, Backend]) -> None:
    subject = small_subject(panels, "moe", **spec)
    assert not [case.name for case in edge_cases(subject.spec, 0) if hesitations(subject, case)]


def test_models_without_experts_do_not_hesitate(panels: dict[str, Backend]) -> None:
    subject = small_subject(panels, "gpt")
    assert hesitations(subject, random_case(subject.spec, 2, 9, 0)) == 0


@pytest.mark.parametrize("rung", ["activations", "logits", "gradients", "decoding"])
def test_a_choice_within_roundoff_is_no_alarm_and_is_told(rung: str,
                                                          panels: dict[str, Backend]) -> None:
    subject = torn(panels)
    found = result(subject, rung, RUNGS[rung](subject))
    assert found.ok and found.hesitant
    said = io.StringIO()
    Report(Console(file=said, width=200)).row(found)
    assert "a choice within roundoff" in said.getvalue()


def test_other_cases_still_find_a_fault(panels: dict[str, Backend],
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    next(fault for fault in FAULTS if fault.name == "gate and up swapped").plant(monkeypatch)
    subject = torn(panels)
    found = result(subject, "activations", RUNGS["activations"](subject))
    assert found.hesitant and {measure.case.name for measure in found.failed} - set(found.hesitant)
