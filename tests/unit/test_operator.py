"""The operator's keys: what is understood, said and handed over, beside a keyboard that drives."""

import pytest

from actor.intervention_config import KeysConfig
from actor.operator import KeyboardOperator, NoOperator, OperatorSignal, ScriptedSignals, open_operator
from policy.errors import ConfigError
from robot.teleop.keyboard import KeyboardDevice
from tests.teleop_fakes import TypedTerminal


@pytest.fixture
def said() -> list[str]:
    return []


def test_every_signal_has_a_key_and_polls_in_the_order_of_pressing(said: list[str]) -> None:
    terminal = TypedTerminal()
    operator = KeyboardOperator(KeysConfig(), said.append, terminal)
    operator.open()
    terminal.press("i", "space", "space", "m", "s", "f", "d", "r", "x", "y")
    signals = operator.poll()
    assert [signal.name for signal in signals] == [
        *("INTERVENE", "PAUSE", "PAUSE", "BOOKMARK", "SUCCESS", "FAILURE", "DISCARD", "RESET"),
        *("ACKNOWLEDGE", "CONFIRM"),
    ]
    assert set(signals) == set(OperatorSignal)
    assert operator.poll() == []


def test_it_says_what_it_understood_and_what_it_did_not(said: list[str]) -> None:
    terminal = TypedTerminal()
    operator = KeyboardOperator(KeysConfig(), said.append, terminal)
    operator.open()
    assert "s = success" in said[0]
    terminal.press("S", "z")  # caps lock must not silence the operator
    assert said[1:] == ["[s] success", said[2]]
    assert said[2].startswith("[z] means nothing here; keys: s = success")
    assert operator.poll() == [OperatorSignal.SUCCESS]


def test_keys_can_be_chosen(said: list[str]) -> None:
    terminal = TypedTerminal()
    operator = KeyboardOperator(KeysConfig(success="enter", discard="backspace"), said.append, terminal)
    operator.open()
    terminal.press("enter", "backspace", "s")
    assert operator.poll() == [OperatorSignal.SUCCESS, OperatorSignal.DISCARD]
    with pytest.raises(ConfigError, match="each needs a key of its own"):
        KeysConfig(success="f")


def test_marks_and_driving_share_one_keyboard(said: list[str]) -> None:
    terminal = TypedTerminal()
    device = KeyboardDevice(terminal=terminal)
    device.connect()
    operator = open_operator(KeysConfig(), said.append, terminal)
    terminal.press("up", "s", now_s=1e9)
    assert device.read().twist[0] > 0
    assert operator.poll() == [OperatorSignal.SUCCESS]
    operator.close()
    operator.close()
    assert device.read().is_connected  # the terminal stays open for the other
    terminal.press("s")
    assert operator.poll() == []


def test_a_layout_that_takes_a_marks_key_is_refused_and_capitals_help(said: list[str]) -> None:
    terminal = TypedTerminal()
    device = KeyboardDevice(layout="wasd", terminal=terminal)
    device.connect()
    with pytest.raises(ConfigError, match=r"key 'd' is claimed twice.*capital letter"):
        open_operator(KeysConfig(), said.append, terminal)
    operator = open_operator(KeysConfig(success="S", discard="D"), said.append, terminal)
    terminal.press("s", "S", now_s=1e9)
    assert operator.poll() == [OperatorSignal.SUCCESS]
    assert device.read().twist[0] < 0


def test_without_a_terminal_nobody_is_there(said: list[str]) -> None:
    operator = open_operator(KeysConfig(), said.append, TypedTerminal(is_usable=False))
    assert isinstance(operator, NoOperator)
    assert operator.poll() == []
    assert said == []


def test_a_scripted_operator_speaks_at_its_polls() -> None:
    operator = ScriptedSignals({1: [OperatorSignal.PAUSE, OperatorSignal.DISCARD]})
    assert [operator.poll() for _ in range(3)] == [[], [OperatorSignal.PAUSE, OperatorSignal.DISCARD], []]
