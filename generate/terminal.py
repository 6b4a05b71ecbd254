"""The prompt line: history, several lines, completion; what is typed goes to a `Session`."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from generate.session import Session
from specs.errors import in_one_line
from train.data import cache_folder

PROMPT, MORE = "> ", ". "


def converse(session: Session) -> None:
    """Ask for lines and do what they say, until one of them leaves. A mistake is told in one line;
    Ctrl-C drops the line that is typed, or stops what is being done."""
    session.screen.print(f"{session.writer}, step {session.writer.step}")
    session.remark("What you type is continued. /help lists commands, Ctrl-D leaves.")
    line = _prompt_line(session)
    while True:
        try:
            session.answer(line.prompt())
        except EOFError:
            return
        except KeyboardInterrupt:
            session.remark("stopped; /quit or Ctrl-D leaves")
        except Exception as error:  # whatever it is, the texts that were written are kept
            message = in_one_line(error) or traceback.format_exc()
            session.screen.print(message.removeprefix("--"), style="red")


def _prompt_line(session: Session) -> PromptSession[str]:
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")  # as terminals send Alt-Enter
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        PROMPT, multiline=True, key_bindings=keys, completer=_Commands(session),
        complete_while_typing=True, history=FileHistory(_history()),
        prompt_continuation=lambda width, number, wrapped: "" if wrapped else MORE)


def _history() -> str:
    """The file of earlier lines; none is kept where it cannot be written."""
    file = cache_folder() / "prompts"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError:
        return os.devnull
    return str(file)


class _Commands(Completer):
    def __init__(self, session: Session) -> None:
        self.session = session

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        for word in self.session.completions(text):
            yield Completion(word, -len(text.rpartition(" ")[2]))
