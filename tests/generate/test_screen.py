"""Texts on the screen, as they come."""

import io
import sys

from rich.console import Console

from generate import screen
from generate.text import Piece


def test_the_second_text_follows_the_first(capsys):
    pieces = [Piece(1, "B"), Piece(0, "a"), Piece(1, "b", "stop"), Piece(0, "aa", "length")]
    seen = []

    def grow():
        for piece in pieces:
            seen.append(capsys.readouterr().out)
            yield piece

    assert screen.show(["> ", "2> "], grow())
    assert [*seen, capsys.readouterr().out] == ["> ", "", "a", "", "aa\n\n2> Bb\n"]


def test_ctrl_c_ends_all_texts_where_they_are(capsys):
    def grow():
        yield from [Piece(0, "a"), Piece(1, "b")]
        raise KeyboardInterrupt

    assert not screen.show(["> ", "2> "], grow())
    assert capsys.readouterr().out == "> a\n\n2> b\n"


def test_ctrl_c_while_a_token_is_shown(capsys, monkeypatch):
    def interrupted(text):
        write(text)
        if text == "b":
            raise KeyboardInterrupt

    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", interrupted)
    assert not screen.show(["> ", "2> "], iter([Piece(0, "a"), Piece(0, "b"), Piece(0, "c")]))
    assert capsys.readouterr().out == "> ab\n\n2> \n"


def columns(monkeypatch, *texts):
    """What side_by_side gives and shows on a terminal of 60 columns."""
    shown = io.StringIO()
    monkeypatch.setattr(screen, "Console", lambda **options: Console(
        file=shown, width=60, force_terminal=True, color_system=None))
    written = screen.side_by_side(["step 1", "step 2"], "> ", texts)
    return written, shown.getvalue()


def test_two_texts_side_by_side(monkeypatch):
    left = [Piece(0, "left "), Piece(0, "text", "stop")]
    right = [Piece(0, "[bold]right "), Piece(0, "text "), Piece(0, "goes on", "length")]
    written, shown = columns(monkeypatch, left, right)
    assert written == ["left text", "[bold]right text goes on"]
    assert "step 1" in shown and "step 2" in shown
    assert any("> left text" in line and "> [bold]right text goes on" in line
               for line in shown.splitlines())


def test_ctrl_c_leaves_the_texts_side_by_side(monkeypatch):
    def grow():
        yield Piece(0, "left")
        raise KeyboardInterrupt

    written, shown = columns(monkeypatch, grow(), [Piece(0, "right"), Piece(0, " end", "stop")])
    assert written == ["left", "right"] and "> right" in shown


def test_a_terminal_gets_no_control_characters(monkeypatch):
    shown = columns(monkeypatch, [Piece(0, "a\x1b[2Jb\x9bc\x7fd", "stop")], [])[1]
    assert "a␛[2Jb�c␡d" in shown
