"""When an actor id is free again: who holds a stream, and how it ends."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cgpo_proto import link_pb2

from learner.committer import Committer
from learner.handshake import Handshake
from learner.link_servicer import LinkServicer
from learner.sessions import ActorInUseError, Sessions
from learner.weights_feed import WeightsFeed
from policy.episode_log import EpisodeLog
from policy.grpc_options import SESSION_KEY
from tests.link_ends import POLICY, hello, messages


class Context:
    """A call as gRPC shows it to a servicer. One that breaks is told after the stream's end, as gRPC tells it."""

    def __init__(self, session: bytes, told_broken_s: float | None) -> None:
        self._session = session
        self._told_broken_s = told_broken_s
        self._is_broken = threading.Event()

    def requests(self) -> Iterator[link_pb2.Record]:
        yield from messages(range(3))
        if self._told_broken_s is not None:
            threading.Timer(self._told_broken_s, self._is_broken.set).start()

    def invocation_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return ((SESSION_KEY, self._session),)

    def is_active(self) -> bool:
        return not self._is_broken.is_set()

    def peer(self) -> str:
        return "ipv4:192.0.2.1:40000"

    def auth_context(self) -> dict[str, Any]:
        return {}


class Learner:
    """A servicer without a server."""

    def __init__(self, run_dir: Path, closing: contextlib.ExitStack) -> None:
        log = closing.enter_context(contextlib.closing(EpisodeLog(run_dir / "log.sqlite")))
        committer = closing.enter_context(contextlib.closing(Committer(log, run_dir)))
        feed = closing.enter_context(contextlib.closing(WeightsFeed(run_dir)))
        self.sessions = Sessions(16)
        self._servicer = LinkServicer(
            log, committer, feed, Handshake(run_dir / "specs.json", json.loads(POLICY.to_json())), self.sessions
        )

    def append(self, told_broken_s: float | None = None) -> list[link_pb2.Ack]:
        session = self._servicer.Hello(hello(), Context(b"", None)).session  # type: ignore[arg-type]
        context: Any = Context(session, told_broken_s)
        return list(self._servicer.Append(context.requests(), context))


@pytest.fixture
def learner(tmp_path: Path) -> Iterator[Learner]:
    with contextlib.ExitStack() as closing:
        yield Learner(tmp_path, closing)


def test_who_ends_the_stream_and_stays_for_the_answer_leaves_the_id_to_others(learner: Learner) -> None:
    assert learner.append()[-1].next_sequence == 3
    learner.sessions.open("robot", "b", "another process")


@pytest.mark.parametrize("told_broken_s", [0.0, 0.02])
def test_a_connection_that_breaks_without_an_error_keeps_the_lease(told_broken_s: float, learner: Learner) -> None:
    assert learner.append(told_broken_s)[-1].next_sequence == 3  # what arrived is stored all the same
    with pytest.raises(ActorInUseError):
        learner.sessions.open("robot", "b", "another process")


def test_a_stream_that_finds_no_thread_lets_go_of_the_lease_in_time(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            learner.append()
    learner.sessions._clock = lambda: 1e9
    learner.sessions.open("robot", "b", "another process")
