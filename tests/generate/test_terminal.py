"""The prompt line in a real terminal: keys go in, what the screen shows comes out."""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.document import Document

from generate import run as command
from generate import terminal
from train.rundir import RunDir

# The session's leader takes the terminal, so that Ctrl-C there becomes a signal
START = """import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""
READY = "\x1b[?2004h"  # sent when the prompt line begins to read keys
ESCAPES = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]|\x1b[=>]|\r")


class Terminal:
    """A process whose standard input and output are a terminal."""

    def __init__(self, *arguments: str) -> None:
        self.keys, far = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *arguments], stdin=far, stdout=far, stderr=far,
            start_new_session=True, env={**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1",
                                         "TERM": "xterm", "COLUMNS": "100", "LINES": "40"})
        os.close(far)
        self.text = ""

    def press(self, keys: str) -> None:
        os.write(self.keys, keys.encode())

    def expect(self, pattern: str) -> str:
        """What was shown since the last call, once `pattern` is in it; "⏎" where it is ready."""
        end = time.monotonic() + 60
        while not re.search(pattern, shown := self.shown()):
            assert time.monotonic() < end, f"{pattern!r} did not come after: {shown}"
            if select.select([self.keys], [], [], 0.1)[0]:
                self._read()
        self.text = ""
        return shown

    def ask(self, keys: str, answer: str) -> str:
        """Press keys; what is shown, with `answer` in it, until the next line can be typed."""
        self.press(keys)
        return self.expect(f"(?s){answer}.*⏎")

    def shown(self) -> str:
        return ESCAPES.sub("", self.text.replace(READY, "⏎"))

    def _read(self) -> None:
        data = b""
        with contextlib.suppress(OSError):  # how Linux tells the end
            data = os.read(self.keys, 4096)
        assert data, f"it ended after: {self.shown()}"
        self.text += data.decode(errors="replace")

    def leave(self, keys: str) -> int:
        self.press(keys)
        with contextlib.suppress(AssertionError):
            self.expect("never shown")
        return self.process.wait(60)


@pytest.fixture
def line(tiny: RunDir) -> Iterator[Terminal]:
    opened = Terminal(command.__file__, "--run", "tiny", "--device", "cpu", "--max-tokens", "20")
    opened.expect("(?s)Ctrl-D leaves.*⏎")
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.keys)


def test_a_session(line: Terminal) -> None:
    shown = line.ask("One\x1b\rTwo\r", "seed 0: first token after")  # Alt-Enter between them
    assert re.search(r"\nOne\nTwo.", shown)
    line.ask("/set max_tokens 1000000\r", "\nmax_tokens 1000000\n")
    line.press("\x1b[A\x1b[A\r")  # Up to the prompt before last, which has two lines
    line.expect("(?s)One\nTwo.{300}")
    line.ask("\x03", "seed 0: first token after .*, then ")
    line.ask("/lod 10\r", "there is no command /lod; did you mean '/load'")
    line.ask("half a line\x03", "/quit or Ctrl-D leaves")
    line.ask("/load 10\r", "step 10 is loaded")
    assert line.leave("\x04") == 0
    kept = Path("cache", "prompts").read_text(encoding="utf-8")
    assert re.findall(r"^\+(.*)", kept, re.MULTILINE) == [
        "One", "Two", "/set max_tokens 1000000", "One", "Two", "/lod 10", "/load 10"]


def test_two_checkpoints_in_columns(line: Terminal) -> None:
    line.ask("Once\r", "seed 0")
    assert line.ask("/compare 10 20\r", "└").count("Once") >= 2
    assert line.leave("quit\r") == 0


class Known:
    """A session that knows two words."""

    def completions(self, text: str) -> list[str]:
        return ["one", "two"]


def test_completion_replaces_the_last_word() -> None:
    found = terminal._Commands(Known()).get_completions(Document("/say o"), None)
    assert [(word.text, word.start_position) for word in found] == [("one", -1), ("two", -1)]


def test_no_history_where_none_can_be_kept(tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "file"))
    assert terminal._history() == os.devnull
