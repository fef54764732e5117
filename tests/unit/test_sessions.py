"""Leases of actor ids, by a clock that the test sets."""

from dataclasses import dataclass

import pytest

from learner.sessions import LEASE_S, ActorInUseError, Sessions, TooManyActorsError


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(2, clock)


def test_an_id_that_is_held_is_refused_with_its_holder(sessions: Sessions) -> None:
    sessions.open("robot", "a", "process 7 on lab-pc")
    with pytest.raises(ActorInUseError, match=r"'robot' is in use by process 7 on lab-pc, since .*--take-over"):
        sessions.open("robot", "b", "process 8 on lab-pc")
    sessions.open("other", "b", "process 8 on lab-pc")


def test_a_lease_outlives_its_last_stream_by_ten_seconds(sessions: Sessions, clock: Clock) -> None:
    session = sessions.open_stream(sessions.open("robot", "a", ""), "Append")
    assert session is not None
    clock.now_s += 10 * LEASE_S  # held by the stream
    with pytest.raises(ActorInUseError):
        sessions.open("robot", "b", "")
    sessions.close_stream(session, "Append", is_goodbye=False)
    clock.now_s += 0.9 * LEASE_S
    with pytest.raises(ActorInUseError):
        sessions.open("robot", "b", "")
    clock.now_s += 0.2 * LEASE_S
    sessions.open("robot", "b", "")


def test_a_hello_without_streams_is_a_lease_too(sessions: Sessions, clock: Clock) -> None:
    sessions.open("robot", "a", "")
    clock.now_s += 0.9 * LEASE_S
    with pytest.raises(ActorInUseError):
        sessions.open("robot", "b", "")
    clock.now_s += 0.2 * LEASE_S
    sessions.open("robot", "b", "")


def test_a_goodbye_frees_the_id_at_once(sessions: Sessions) -> None:
    session = sessions.open_stream(sessions.open("robot", "a", ""), "Append")
    assert session is not None
    sessions.close_stream(session, "Append", is_goodbye=True)
    sessions.open("robot", "b", "")


def test_the_goodbye_of_an_old_connection_leaves_the_new_one_its_lease(sessions: Sessions) -> None:
    old = sessions.open_stream(sessions.open("robot", "a", ""), "Append")
    assert old is not None
    new = sessions.open("robot", "a", "")
    sessions.close_stream(old, "Append", is_goodbye=True)
    assert sessions.open_stream(new, "Append") is not None
    with pytest.raises(ActorInUseError):
        sessions.open("robot", "b", "")


def test_a_reconnecting_actor_ends_its_old_streams_and_a_stranger_does_not(sessions: Sessions) -> None:
    old = sessions.open_stream(sessions.open("robot", "a", ""), "Append")
    assert old is not None
    with pytest.raises(ActorInUseError):
        sessions.open("robot", "b", "")
    assert not old.is_over
    sessions.open("robot", "a", "")
    assert (old.is_over, old.is_taken_over) == (True, False)


def test_taking_over_ends_the_other_and_locks_it_out(sessions: Sessions) -> None:
    key = sessions.open("robot", "a", "")
    old = sessions.open_stream(key, "Append")
    assert old is not None
    sessions.open("robot", "b", "the new one", take_over=True)
    assert (old.is_over, old.is_taken_over) == (True, True)
    assert sessions.open_stream(key, "WatchWeights") is None
    with pytest.raises(ActorInUseError, match="the new one"):
        sessions.open("robot", "a", "")


def test_who_has_the_spool_of_a_dead_process_need_not_wait_for_its_lease_to_end(sessions: Sessions) -> None:
    session = sessions.open_stream(sessions.open("robot", "a", ""), "Append")
    assert session is not None
    with pytest.raises(ActorInUseError):  # a copy of its spool, while it lives
        sessions.open("robot", "b", "", oldest_sequences={"a": 3})
    sessions.close_stream(session, "Append", is_goodbye=False)
    with pytest.raises(ActorInUseError):
        sessions.open("robot", "b", "", oldest_sequences={"0": 0})
    sessions.open("robot", "b", "", oldest_sequences={"0": 0, "a": 3})
    assert session.is_over


def test_a_session_has_one_stream_of_each_kind_and_an_unknown_key_none(sessions: Sessions) -> None:
    key = sessions.open("robot", "a", "")
    assert sessions.open_stream(key, "Append") is not None
    assert sessions.open_stream(key, "Append") is None
    assert sessions.open_stream(key, "WatchWeights") is not None
    assert sessions.open_stream(b"0123456789abcdef", "Append") is None
    assert sessions.open_stream(None, "Append") is None


def test_one_actor_too_many_is_told_who_is_there(sessions: Sessions, clock: Clock) -> None:
    sessions.open("left", "a", "")
    sessions.open("right", "a", "")
    with pytest.raises(TooManyActorsError, match=r"2 actors .*left, right"):
        sessions.open("third", "a", "")
    sessions.open("left", "a", "")  # back on another connection: not one more
    clock.now_s += 2 * LEASE_S
    sessions.open("third", "a", "")
