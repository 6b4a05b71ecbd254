"""The commands of the prompt line, without a terminal."""

import re
import signal
from types import SimpleNamespace

import pytest

from generate.sampling import Sampler
from generate.session import COMMANDS, Session
from generate.terminal import converse
from generate.writer import Writer
from specs import UserError
from specs.backend import BACKENDS, available_backends, load_backend


@pytest.fixture(params=available_backends())
def session(tiny, request):
    writer = Writer(tiny, tiny.load(), load_backend(request.param, "cpu"))
    return Session(writer, Sampler(temperature=0.7), max_tokens=12, device="cpu")


def said(session, capsys, *lines):
    """What the last of these lines brings to the screen."""
    for line in lines:
        capsys.readouterr()
        session.answer(line)
    return capsys.readouterr().out


def text(session, capsys, *lines):
    """The text alone, without the remark below it."""
    return said(session, capsys, *lines).rpartition("\nstep ")[0]


def test_a_line_is_continued(session, capsys):
    out = said(session, capsys, "The sky\nis")
    assert out.startswith("The sky\nis") and len(out.partition("\nstep ")[0]) > 10
    assert re.search(r"\nstep 20, seed 0: first token after .* tokens/s\)", out)


def test_an_empty_line_does_nothing(session, capsys):
    assert said(session, capsys, "") == ""


@pytest.mark.parametrize("line", [" /load 10", "/usr/bin", "// a remark", "/* one */", "quit it"])
def test_what_looks_like_a_command_and_is_a_text(session, capsys, line):
    assert said(session, capsys, line).startswith(line)


def test_the_same_prompt_has_the_same_text_and_retry_another(session, capsys):
    first = text(session, capsys, "Once")
    assert text(session, capsys, "Once") == first
    second = text(session, capsys, "/retry")
    assert second != first and second.startswith("Once")
    assert text(session, capsys, "/set seed 0", "Once") == first


def test_checkpoints_are_listed_and_loaded(session, capsys):
    latest = text(session, capsys, "Once")
    assert said(session, capsys, "/checkpoints") == (
        "        10  validation loss 3.0000\n        20  validation loss 2.5000  best, loaded\n")
    assert said(session, capsys, "/load 10") == "step 10 is loaded\n"
    assert "10  validation loss 3.0000  loaded" in said(session, capsys, "/checkpoints")
    assert text(session, capsys, "Once") != latest
    assert text(session, capsys, "/load 20", "Once") == latest


def test_a_damaged_checkpoint_is_named_and_changes_nothing(session, capsys, tiny):
    file = tiny.path / "step-00000010" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (tiny.path / "step-00000020" / "state.json").write_text("{")
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        session.answer("/load 10")
    assert session.writer.step == 20
    assert "20  damaged" in said(session, capsys, "/checkpoints")


def test_params_tell_what_set_has_changed(session, capsys):
    session.answer("/set top-k 5")
    session.answer("/set max_tokens 3")
    session.answer("/set stop \\n\\n")
    out = said(session, capsys, "/params")
    assert f"tiny on {session.writer.backend.name} (cpu, float32), step 20: bdh" in out
    for name, value in (("temperature", 0.7), ("top_k", 5), ("max_tokens", 3),
                        ("stop", r"'\n\n'")):
        assert re.search(rf"^  {name} +{re.escape(str(value))}$", out, re.MULTILINE)
    assert session.stop == ("\n\n",)
    session.answer("/set stop nothing")
    assert session.stop == ()
    assert len(text(session, capsys, "/set temperature 0", "ab")) <= 5


@pytest.mark.needs(*BACKENDS)
def test_the_other_backend_writes_the_same(session, capsys):
    first = text(session, capsys, "/load 10", "Once")
    for name in BACKENDS:
        assert f"tiny on {name} (cpu, float32)" in said(session, capsys, f"/backend {name}")
        assert session.writer.step == 10
        assert text(session, capsys, "Once") == first


def test_two_checkpoints_are_compared(session, capsys):
    texts = [text(session, capsys, f"/load {step}", "Once") for step in (10, 20)]
    out = said(session, capsys, "/compare 10 20")
    assert "step 10" in out and "step 20" in out and session.writer.step == 20
    assert [kept.partition("\n")[2] for kept in session.written[-2:]] == texts


def test_all_texts_are_saved(session, capsys, tmp_path):
    one, two = text(session, capsys, "Once"), text(session, capsys, "/retry")
    assert said(session, capsys, "/save all texts.txt") == "all texts.txt: 2 texts\n"
    saved = (tmp_path / "all texts.txt").read_bytes().decode()
    assert re.fullmatch(rf"# tiny, step 20, temperature 0.7, .*, seed 0, .*\n{re.escape(one)}\n\n"
                        rf"# tiny, step 20, .*, seed 1, .*\n{re.escape(two)}\n", saved)
    session.answer("/save all texts.txt")
    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(UserError, match="other.txt exists: choose another name"):
        session.answer("/save other.txt")


@pytest.mark.parametrize(("line", "message"), [
    ("/lod 10", "there is no command /lod; did you mean '/load'?"),
    ("/", "there is no command /"),
    ("/load", "say it as: /load STEP"),
    ("/load ten", "STEP 'ten' must be a whole number"),
    ("/load 15", "tiny has no checkpoint at step 15; it has: 10, 20"),
    ("/params all", "say it as: /params"),
    ("/set", "say it as: /set SETTING VALUE"),
    ("/set temprature 1", "there is no setting 'temprature'; did you mean 'temperature'?"),
    ("/set temperature hot", "temperature 'hot' must be a number"),
    ("/set temperature -1", "temperature -1.0 must be 0"),
    ("/set seed 1.5", "seed '1.5' must be a whole number"),
    ("/set max_tokens 0", "max-tokens 0 must be at least 1"),
    ("/backend jax", "no backend 'jax'"),
    ("/retry", "there is no prompt yet"),
    ("/compare 10 20", "there is no prompt yet"),
    ("/save x.txt", "nothing was written yet"),
], ids=str)
def test_a_wrong_line_is_told_and_changes_nothing(session, line, message):
    before = {**vars(session)}
    with pytest.raises(UserError, match=re.escape(message)):
        session.answer(line)
    assert vars(session) == before


@pytest.mark.parametrize("line", ["quit", "exit", "/quit", " quit "])
def test_leaving(session, line):
    with pytest.raises(EOFError):
        session.answer(line)


def test_help_knows_every_command(session, capsys):
    out = said(session, capsys, "/help")
    assert all(f"/{name} {arguments}" in out for name, (arguments, _) in COMMANDS.items())


@pytest.mark.parametrize(("text", "wanted"), [
    ("/co", ["/compare"]), ("/load ", ["10", "20"]), ("/compare 10 2", ["20"]),
    ("/set te", ["temperature"]), ("/set temperature ", []), ("/load 10 ", []), ("/nothing ", []),
    ("The ", []), ("", []),
], ids=str)
def test_completion(session, text, wanted):
    assert session.completions(text) == wanted


def test_completion_of_backends(session):
    assert session.completions("/backend ") == available_backends()


def test_ctrl_c_waits_until_a_framework_is_loaded(session, monkeypatch):
    """Half of one cannot be completed in this process."""
    def load(name, device):
        signal.raise_signal(signal.SIGINT)
        return session.writer.backend

    monkeypatch.setattr("generate.session.load_backend", load)
    before = signal.getsignal(signal.SIGINT)
    session.answer(f"/backend {session.writer.backend.name}")
    assert signal.getsignal(signal.SIGINT) is before


def test_what_goes_wrong_ends_no_session(session, capsys, monkeypatch):
    lines = iter(["Once", "/params", "/save ~no-such-user/texts", "/quit"])
    monkeypatch.setattr("generate.terminal._prompt_line", lambda _: SimpleNamespace(
        prompt=lambda: next(lines)))
    monkeypatch.setattr(session, "do_params", lambda: 1 / 0)
    converse(session)
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out and "~no-such-user/texts" in out and len(session.written) == 1
