"""Who keeps failing has to wait, in a bounded way, and nobody waits for them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from learner import authentication
from learner.authentication import TokenInterceptor

TOKEN = "t" * 43
HANG_LIMIT_S = 30.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_delay_doubles_up_to_a_limit() -> None:
    peers = authentication._FailingPeers(Clock())
    delays_s = [peers.note_failure(f"ipv4:10.0.0.1:{port}") for port in range(1000, 1012)]
    assert delays_s == pytest.approx([0.0] * 3 + [0.2, 0.4, 0.8, 1.6] + [2.0] * 5)
    assert peers.note_failure("ipv4:10.0.0.2:1000") == 0.0, "another machine begins anew"


def test_a_peer_that_keeps_failing_fills_neither_log_nor_memory(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    peers = authentication._FailingPeers(clock)
    for _ in range(1000):
        peers.note_failure("ipv4:10.0.0.1:5")
    assert len(caplog.records) == 1
    clock.now_s = 11.0
    peers.note_failure("ipv4:10.0.0.1:5")
    assert "1001 times" in caplog.records[-1].getMessage()
    for machine in range(5000):
        peers.note_failure(f"ipv6:[fe80::{machine:x}]:5")
    assert len(peers._failures) <= 256
    assert len(peers._logged_s) <= 256


def test_a_failure_count_has_no_limit_that_overflows() -> None:
    peers = authentication._FailingPeers(Clock())
    peers._failures["ipv4:10.0.0.1"] = 10**9
    assert peers.note_failure("ipv4:10.0.0.1:5") == 2.0


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Refusals wait until the test ends; returns how many do."""
    release, sleeping = threading.Event(), threading.Semaphore(0)
    counts: list[float] = []

    def sleep(duration_s: float) -> None:
        counts.append(duration_s)
        sleeping.release()
        release.wait(HANG_LIMIT_S)

    monkeypatch.setattr("learner.authentication.time.sleep", sleep)
    yield lambda: len(counts)
    release.set()


def test_waiting_refusals_hold_two_threads_at_most_and_no_right_call(sleepers: Callable[[], int]) -> None:
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[TokenInterceptor(TOKEN)])
    echo: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"Echo": echo}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/a.B/Echo")
        wrong = [
            call.future(b"?", metadata=(("authorization", f"Bearer {number}"),), timeout=HANG_LIMIT_S)
            for number in range(20)
        ]
        right = call(b"!", metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=HANG_LIMIT_S)
        assert right == b"!"
        done = threading.Semaphore(0)
        for refused in wrong:
            refused.add_done_callback(lambda _: done.release())
        for _ in range(18):
            assert done.acquire(timeout=HANG_LIMIT_S), "refusals beyond the two that wait are immediate"
        assert sleepers() == 2
        codes = {refused.code() for refused in wrong if refused.done()}
        assert codes == {grpc.StatusCode.UNAUTHENTICATED}
    server.stop(0)
