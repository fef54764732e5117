"""Text of others on its way to a terminal or a log."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.text import clean

ESCAPE = "\x1b[2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße, 5 µm", "Grüße, 5 µm"),
        (f"a{ESCAPE}b", r"a\x1b[2Jb"),
        ("one\nerror: two\r", r"one\nerror: two\r"),
        ("left \u202e thgir", r"left \u202e thgir"),
        ("\x9b2J", r"\x9b2J"),
    ],
)
def test_what_does_not_print_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_a_long_text_is_cut_and_that_is_seen() -> None:
    assert clean("x" * 10, 10) == "x" * 10
    assert clean("x" * 11, 10) == "x" * 9 + "…"
    assert clean("\0" * 10, 10) == r"\x00\x00\…"


@given(text=st.text(), limit=st.integers(1, 20) | st.none())
def test_whatever_it_was_it_prints_and_is_within_the_limit(text: str, limit: int | None) -> None:
    shown = clean(text, limit, keep="\n")
    assert shown.replace("\n", "").isprintable()
    assert limit is None or len(shown) <= limit
    assert clean(shown, limit, keep="\n") == shown


PROGRAM = """
import logging, sys
from policy.cli import run_main
from policy.errors import WireError
words = "x\\n2026 ERROR learner: forged\\x1b[2J" + "y" * 100_000
def main():
    logging.getLogger("learner").info("refused %s", words)
    try:
        raise ValueError("\\x1b]0;title\\a")
    except ValueError:
        logging.getLogger("learner").exception("unforeseen")
    raise WireError("refused \\x1b[1A it")
sys.exit(run_main(main))
"""


def test_a_program_writes_no_control_characters_and_no_forged_lines() -> None:
    program = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    lines = program.stderr.splitlines()
    assert all(line.isprintable() for line in lines), lines
    (line,) = [line for line in lines if "INFO" in line]
    assert r"INFO learner: refused x\n2026 ERROR learner: forged\x1b[2J" in line
    assert len(line) < 5000
    assert "Traceback (most recent call last):" in lines  # which keeps its lines
    assert r"ValueError: \x1b]0;title\x07" in lines
    assert r"error: refused \x1b[1A it" in lines


def test_what_an_actor_says_is_as_printable(capsys: pytest.CaptureFixture[str]) -> None:
    from actor.__main__ import say

    say(f"one\ntwo{ESCAPE}")
    assert capsys.readouterr().out == "one\ntwo\\x1b[2J\n"
