"""What money buys: the law, the search, the table of devices, the printed command."""

from __future__ import annotations

import json
import math
import re
import shlex
from itertools import islice

import numpy as np
import pytest

from specs import architectures, spec_type
from specs.errors import UserError
from train import budget as command
from train import options
from train.devices import DEVICES
from train.optimum import FITS, best, largest, sizes, training_bytes
from train.rundir import RunDir
from train.settings import Settings
from train.tokenizer import make_tokenizer

FIT = FITS["besiroglu"]
SMALL = {"block_size": 256, "vocab_size": 4096, "dropout": 0.0}


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says, as one line where the table wraps."""
    capsys.readouterr()
    assert command.main(list(arguments)) == 0
    return capsys.readouterr().out


def trained(out: str) -> tuple[object, Settings, object]:
    """(spec, settings, arguments) that train/run.py makes of the printed line."""
    line = next(line for line in out.splitlines() if line.startswith("python train/run.py"))
    args = options.parser().parse_args(shlex.split(line)[2:])
    spec, _ = options.new_spec(args, int(args.tokenizer.removeprefix("bpe:")))
    return spec, options.with_tokens(args, options.new_settings(args), spec.block_size), args


@pytest.mark.parametrize(("fit", "ratio"), [("besiroglu", 20), ("hoffmann", 70)])
def test_the_law_is_that_of_the_papers(fit: str, ratio: float) -> None:
    """Tokens for each parameter at Chinchilla's 5.76e23 FLOPs, as Besiroglu et al. have them."""
    parameters = np.logspace(9, 12, 3000)
    tokens = 5.76e23 / (6 * parameters)
    best = FITS[fit].loss(parameters, tokens).argmin()
    assert tokens[best] / parameters[best] == pytest.approx(ratio, rel=0.3)


@pytest.mark.parametrize(("flops", "low", "high"), [(1e17, 10, 40), (1e19, 10, 35), (1e21, 10, 30)],
                         ids=["1e17", "1e19", "1e21"])
def test_the_best_gpt_sees_about_twenty_tokens_a_parameter(flops: float, low: float,
                                                           high: float) -> None:
    (plan, _), = best(sizes("gpt", None, **SMALL), [flops], [math.inf], FIT, True)
    assert low < plan.tokens / plan.spec.param_count() < high
    assert plan.tokens * 3 * plan.spec.flops_per_token(256) == pytest.approx(flops)


def test_no_other_size_is_better() -> None:
    flops = 1e18
    (plan, _), = best(sizes("gpt", "llama", **SMALL), [flops], [math.inf], FIT, True)
    for _, spec in islice(sizes("gpt", "llama", **SMALL), 30):
        tokens = flops / (3 * spec.flops_per_token(256))
        assert FIT.loss(spec.param_count(), tokens) >= plan.loss


def test_what_does_not_fit_is_not_chosen() -> None:
    (free, held), (_, none) = best(sizes("gpt", None, **SMALL), [1e20, 1e20], [2e9, 1e6], FIT, True)
    assert none is None and held is not None
    assert held.memory <= 2e9 < free.memory and held.loss > free.loss
    assert held.spec.param_count() < free.spec.param_count()


def test_recomputing_takes_less_memory_and_costs_tokens() -> None:
    spec = spec_type("gpt").preset("llama", **SMALL)
    plain, lean = training_bytes(spec, True, False), training_bytes(spec, True, True)
    assert lean < plain
    long = {**SMALL, "block_size": 16384}
    (free, held), = best(sizes("gpt", None, **long), [1e20], [15e9], FIT, True)
    assert held is not None and held.recompute and not free.recompute
    assert held.memory < 15e9 < free.memory
    assert held.tokens * 4 * held.spec.flops_per_token(16384) == pytest.approx(1e20)


@pytest.mark.parametrize("arch", architectures())
def test_every_architecture_has_sizes(arch: str) -> None:
    found = [spec.param_count() for _, spec in islice(sizes(arch, None, **SMALL), 4)]
    assert found == sorted(found) and len(set(found)) == 4
    fields, spec = next(sizes(arch, None, **SMALL))
    assert spec == spec_type(arch).preset(largest(arch), **SMALL, **fields)


def test_a_mixture_keeps_the_activations_of_the_chosen_experts() -> None:
    few, many = (spec_type("moe").preset("mixtral", n_experts=n, **SMALL) for n in (4, 8))
    more = 16 * (many.param_count() - few.param_count())
    assert training_bytes(many, False, False) - training_bytes(few, False, False) == pytest.approx(
        more, rel=1e-3)


@pytest.mark.parametrize("arch", architectures())
def test_the_printed_line_trains_what_the_table_says(arch: str,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "--budget", "5", "--arch", arch, "--block-size", "512")
    spec, settings, args = trained(out)
    assert spec.arch == arch and spec.block_size == 512 and spec.vocab_size == 32768
    assert spec.dropout == 0 and args.backend == "torch" and settings.dtype == "bfloat16"
    assert f"{spec.n_layer} × {spec.n_embd}" in out
    hours = 5 / DEVICES["h100"].rent
    flops = 3600 * hours * DEVICES["h100"].bfloat16 * 0.4
    seen = settings.tokens_until(settings.steps, 512)
    text = settings.data_tokens / 1e9
    assert f"about {6 * text:.3g} GB of the computer's own memory and {8 * text:.3g} GB" in out
    passes = 4 if settings.recompute else 3
    assert seen * passes * spec.flops_per_token(512) == pytest.approx(flops, rel=0.01)
    assert settings.memory < DEVICES["h100"].memory


def test_devices_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "--budget", "5", "--compare")
    assert "m4-max: no rent is known of it; give --hours, or --gpu m4-max --price" in out
    assert all(f"{name}: {device.name}; {device.source}" in out
               for name, device in DEVICES.items() if device.rent)
    assert "MFU 0.4, assumed; bfloat16; loss by Besiroglu" in out
    equal_hours = told(capsys, "--hours", "2", "--compare")
    rows = [line for line in equal_hours.splitlines() if "×" in line]
    assert all(len(row) <= 80 for row in rows)
    assert len(rows) == len(DEVICES) and "b200" in rows[0] and "m4-max" in rows[-1]
    assert "\nOn b200, " in equal_hours


def test_a_mac_by_the_hour_and_by_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "--hours", "12", "--gpu", "m4-max", "--arch", "bdh")
    assert trained(out)[2].backend == "mlx" and "--compile" not in out
    priced = told(capsys, "--budget", "6", "--price", "0.5", "--gpu", "m4-max", "--arch", "bdh")
    assert trained(priced)[0] == trained(out)[0] and "rent: $0.5 an hour, given" in priced


def test_the_less_of_money_and_hours(capsys: pytest.CaptureFixture[str]) -> None:
    both = told(capsys, "--budget", "1000", "--hours", "1")
    assert trained(both)[0] == trained(told(capsys, "--hours", "1"))[0]


def test_what_a_device_cannot_hold_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "--hours", "100000", "--gpu", "rtx4090", "--arch", "gpt")
    assert re.search(r"rtx4090: its 24 GB cannot hold the best model, [\d.]+B parameters, whose "
                     r"training takes at least [\d.]+ GB", out)
    spec, settings, _ = trained(out)
    assert training_bytes(spec, True, settings.recompute) <= 0.9 * 24e9


def test_the_mfu_is_that_of_a_run(here: object, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_type("gpt").preset("tiny", vocab_size=256)
    run = RunDir.create("mine", spec, Settings(), "tiny", make_tokenizer("bytes", []), {}, {},
                        lambda folder: None)
    with pytest.raises(UserError, match="mine has measured no MFU yet"):
        command.main(["--budget", "5", "--run", "mine"])
    shares = [0.01, 0.01, 0.2, 0.3, 0.25]
    run.metrics.write_text("".join(json.dumps({"step": i, "mfu": share}) + "\n"
                                   for i, share in enumerate(shares)))
    assert "MFU 0.25, measured by mine" in told(capsys, "--budget", "5", "--run", "mine")


def test_every_figure_has_a_source() -> None:
    for device in DEVICES.values():
        assert device.source
        assert device.rent is None or re.search(r"20\d\d-\d\d-\d\d", device.rent_source)
        assert 1e12 < device.float32 <= device.bfloat16 < 1e16
        assert 1e9 < device.memory < device.bandwidth


@pytest.mark.parametrize(("options", "message"), [
    ([], "say what may be spent"),
    (["--budget", "-1"], "--budget -1 must be positive"),
    (["--hours", "inf"], "--hours inf must be positive"),
    (["--budget", "5", "--gpu", "h10"], "no device 'h10'; did you mean 'h100'"),
    (["--budget", "5", "--gpu", "m4-max"], "no rent is known of m4-max: give --hours"),
    (["--budget", "5", "--mfu", "40"], "--mfu 40 must be a share"),
    (["--budget", "5", "--mfu", "0.3", "--run", "x"], "--mfu and --run do not go together"),
    (["--budget", "5", "--price", "1", "--compare"], "--price and --compare do not go together"),
    (["--budget", "5", "--arch", "gtp"], "no architecture 'gtp'"),
    (["--budget", "5", "--preset", "big"], "gpt has no preset 'big'"),
    (["--budget", "5", "--block-size", "0"], "block_size = 0 must be at least 1"),
    (["--budget", "5", "--vocab-size", "10"], "--vocab-size 10 must be at least 257"),
    (["--budget", "5", "--run", "nothing"], "no run 'nothing'"),
], ids=lambda each: " ".join(each) if isinstance(each, list) else "")
def test_bad_input(here: object, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        command.main(options)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    out = capsys.readouterr().out
    assert "Chinchilla's law" in out and all(len(line) <= 100 for line in out.splitlines())
