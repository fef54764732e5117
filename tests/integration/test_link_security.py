"""A learner with credentials lets nobody in but its own actors, says so on both sides, and stores nothing of others."""

import contextlib
import logging
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from cgpo_proto import link_pb2, link_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from actor.channel import explain_unavailable, open_channel
from actor.config import ActorConfig
from actor.doctor.check import Result, Runner, Status
from actor.doctor.learner import check_port
from actor.doctor.link import LinkProbe, check_reachable, link_checks
from actor.uplink import open_uplink
from learner import certs
from learner.__main__ import ingest_command
from learner.authentication import server_credentials
from learner.config import LearnerConfig
from policy.credentials import CERTIFICATE_FILE, KEY_FILE, TOKEN_FILE, Credentials
from policy.errors import EXIT_CONFIG, ConfigError
from policy.grpc_options import CHANNEL_OPTIONS
from policy.weights import serialise
from tests.link_ends import HANG_LIMIT_S, Actor, Ingest, hello, refused, unfinished_pings, wait_until
from tests.transitions import SPECS

DAY = timedelta(days=1)


class Lab:
    """Two sets of credentials, of this lab and of another one, and folders made of parts of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("lab", "other"):
            certs.init(folder / name, ["workstation.lab"], ["robot", "second"], 90 * DAY)
        self.learner = folder / "lab" / "learner"
        self.robot = folder / "lab" / "actors" / "robot"
        self.second = folder / "lab" / "actors" / "second"
        self.others_robot = folder / "other" / "actors" / "robot"
        self.good = Credentials.load(self.robot)

    def presenting(self, certificate: Path, token: str) -> Credentials:
        """Return credentials that trust this lab's authority, and show a certificate and a token of anybody's.

        A program that cares for nobody's rules: nothing of it is checked here.
        """
        return replace(
            self.good,
            folder=certificate,
            certificate_pem=(certificate / CERTIFICATE_FILE).read_bytes(),
            key_pem=(certificate / KEY_FILE).read_bytes(),
            token=token,
        )

    def expired(self) -> Path:
        folder = self._folder / "expired"
        certs.make_leaf(self._folder / "lab" / "ca", folder, "robot", self.good.token, (), -timedelta(minutes=1))
        return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("credentials"))


@pytest.fixture
def guarded(tmp_path: Path, lab: Lab) -> Iterator[Ingest]:
    """An ingest process with this lab's credentials; whatever happens, nobody writes the token down."""
    ingest = Ingest(tmp_path / "run", "--credentials", str(lab.learner)).start()
    yield ingest
    log = ingest.stop()
    assert "Traceback" not in log
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3
    for path in written:
        assert lab.good.token.encode() not in path.read_bytes(), path


def channel_without_token(address: str, credentials: Credentials) -> grpc.Channel:
    transport = grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)
    return grpc.secure_channel(address, transport, options=CHANNEL_OPTIONS)


def ping(channel: grpc.Channel) -> link_pb2.PingReply:
    stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
    reply: link_pb2.PingReply = stub.Ping(link_pb2.PingRequest(), timeout=HANG_LIMIT_S)
    return reply


def assert_works(ingest: Ingest, credentials: Credentials) -> None:
    with open_channel(ingest.address, credentials) as channel:
        assert ping(channel).protocol_version > 0


def test_the_right_credentials_carry_steps_there_and_weights_back(
    guarded: Ingest, lab: Lab, connect: Callable[..., Actor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    guarded.weights.publish(serialise({"weight": torch.ones(3)}), version=4, learner_step=1)
    robot = connect(guarded.address, credentials=lab.good)
    robot.offer(range(20))
    robot.drain()
    assert robot.wait_for_version(4).version == 4
    assert [sequence for _, _, sequence in guarded.sequences()] == [*range(20)]
    assert lab.good.token not in caplog.text


def test_steps_survive_a_restart_of_a_guarded_learner(guarded: Ingest, lab: Lab, connect: Callable[..., Actor]) -> None:
    robot = connect(guarded.address, credentials=lab.good)
    robot.offer(range(5))
    robot.drain()
    guarded.kill()
    robot.offer(range(5, 10))
    guarded.start()
    robot.drain()
    assert [sequence for _, _, sequence in guarded.sequences()] == [*range(10)]


def intruder(kind: str, lab: Lab) -> Credentials | None:
    """Return what somebody has who should not be let in."""
    if kind == "wrong token":
        return replace(lab.good, token="wrong-" * 8)
    if kind == "token of another lab":
        return replace(lab.good, token=(lab.others_robot / TOKEN_FILE).read_text().strip())
    if kind == "certificate of another lab":
        return lab.presenting(lab.others_robot, lab.good.token)
    if kind == "expired certificate":
        return lab.presenting(lab.expired(), lab.good.token)
    if kind == "another actor's certificate":
        return Credentials.load(lab.second)
    if kind == "the learner's certificate":
        return Credentials.load(lab.learner)
    assert kind == "no credentials"
    return None


@pytest.mark.parametrize(
    ("kind", "at_the_actor", "at_the_learner"),
    [
        ("wrong token", r"UNAUTHENTICATED: .*token", r"WARNING learner\.authentication: refused ipv4:127"),
        ("token of another lab", r"UNAUTHENTICATED: .*token", r"WARNING learner\.authentication: refused ipv4:127"),
        ("certificate of another lab", "does not accept the certificate in", ""),  # strangers write nothing here
        ("expired certificate", "does not accept the certificate in", ""),
        ("another actor's certificate", "certificate is that of 'second', not of 'robot'", "certificate of 'second'"),
        ("the learner's certificate", "certificate is that of 'learner', not of 'robot'", "certificate of 'learner'"),
        ("no credentials", "asks for credentials", ""),
    ],
)
def test_an_intruder_is_told_why_and_stores_nothing(
    kind: str,
    at_the_actor: str,
    at_the_learner: str,
    guarded: Ingest,
    lab: Lab,
    connect: Callable[..., Actor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    robot = connect(guarded.address, credentials=intruder(kind, lab))
    robot.offer(range(3))
    wait_until(lambda: robot.link.statistics.last_error)
    assert re.search(at_the_actor, robot.link.statistics.last_error), robot.link.statistics
    assert re.search(at_the_learner, guarded.log_path.read_text())
    assert robot.spool.pending == 3
    assert guarded.sequences() == []
    assert not (guarded.run_dir / "specs.json").exists(), "nor does it fix anything of the run"
    assert lab.good.token not in caplog.text
    assert_works(guarded, lab.good)


def test_credentials_of_another_lab_are_refused_by_the_actor_itself(
    guarded: Ingest, lab: Lab, connect: Callable[..., Actor]
) -> None:
    robot = connect(guarded.address, credentials=Credentials.load(lab.others_robot))
    wait_until(lambda: robot.link.statistics.last_error)
    assert "was not made by the authority in ca.pem here" in robot.link.statistics.last_error


def test_an_expired_folder_does_not_even_start(tmp_path: Path, lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"expired on .*learner\.certs renew"):
        Credentials.load(lab.expired())
    command = Ingest(tmp_path / "run", "--credentials", str(lab.expired())).command()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=HANG_LIMIT_S, check=False)
    assert ended.returncode == EXIT_CONFIG
    assert "expired on" in ended.stderr
    assert "learner.certs renew" in ended.stderr


def test_an_actor_cannot_pass_for_the_learner(tmp_path: Path, lab: Lab, connect: Callable[..., Actor]) -> None:
    """Its id may even be the learner's name: a certificate without subject names is then taken at its word."""
    impostor = tmp_path / "impostor"
    certs.make_leaf(lab.learner.parent / "ca", impostor, "localhost", lab.good.token, (), DAY)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(Credentials.load(impostor)))
    server.start()
    try:
        robot = connect(f"localhost:{port}", credentials=lab.good)
        robot.offer(range(1))
        wait_until(lambda: robot.link.statistics.last_error)
        assert "it is an actor's" in robot.link.statistics.last_error
        assert robot.spool.pending == 1
    finally:
        server.stop(None)


def test_a_learner_with_an_actors_folder_does_not_even_start(tmp_path: Path, lab: Lab) -> None:
    command = Ingest(tmp_path / "run").command("--credentials", str(lab.robot))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=HANG_LIMIT_S, check=False)
    assert ended.returncode == EXIT_CONFIG
    assert "those of the actor 'robot'" in ended.stderr
    assert "credentials/learner" in ended.stderr


def test_a_learner_that_runs_for_long_says_when_its_credentials_end(tmp_path: Path, lab: Lab) -> None:
    ending = tmp_path / "ending"
    certs.make_leaf(lab.learner.parent / "ca", ending, "learner", lab.good.token, ("localhost",), DAY)
    ingest = Ingest(tmp_path / "run", "--credentials", str(ending))
    program = (
        "import sys; import learner.ingest as i; from policy.cli import run_main; i._WARNING_PERIOD_S = 0.05; "
        "i._REMINDER_PERIOD_S = 0.1; sys.exit(run_main(i.main))"
    )
    with ingest.log_path.open("ab") as log:
        ingest.process = subprocess.Popen([sys.executable, "-c", program, *ingest.command()[3:]], stderr=log)
    wait_until(lambda: ingest.log_path.read_text().count("expires in 1.0 days") >= 3)
    ingest.stop()


def test_a_learner_under_another_name_is_not_the_learner(tmp_path: Path, lab: Lab) -> None:
    ingest = Ingest(tmp_path / "run", "--credentials", str(lab.learner), "--host", "127.0.0.2").start()
    try:
        assert ingest.address.startswith("127.0.0.2:")
        problem = explain_unavailable(ingest.address, lab.good)
        assert "it is for other names. `python -m learner.certs renew --host NAME" in problem
        with open_channel(ingest.address, lab.good) as channel:
            assert refused(lambda: ping(channel))[0] is grpc.StatusCode.UNAVAILABLE
        seen = check_reachable(LinkProbe(ingest.address, lab.robot))
        assert (seen.status, "certs renew --host" in seen.fix) == (Status.FAILED, True)
    finally:
        ingest.kill()


def test_an_actor_with_credentials_gives_nothing_to_a_learner_without(
    ingest: Ingest, lab: Lab, connect: Callable[..., Actor]
) -> None:
    robot = connect(ingest.address, credentials=lab.good)
    robot.offer(range(1))
    wait_until(lambda: robot.link.statistics.last_error)
    assert "speaks no TLS" in robot.link.statistics.last_error
    assert ingest.sequences() == []


def test_every_method_wants_the_token_before_it_reads_anything(guarded: Ingest, lab: Lab) -> None:
    """Bytes that are no message would be INTERNAL, and an unknown method UNIMPLEMENTED, had they been looked at."""
    methods = [
        f"/{service.full_name}/{method.name}"
        for module in (link_pb2, health_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert len(methods) >= 6
    methods += ["/cgpo.v1.Link/Unknown", "/unknown.Service/Method"]
    garbage = b"\xff" * 100
    with channel_without_token(guarded.address, lab.good) as channel:
        calls: dict[str, Any] = {}  # all at once: one after the other, each would have to wait for its refusal
        for method in methods:
            unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
            calls[f"{method}, unary"] = unary.future(garbage, timeout=HANG_LIMIT_S)
            calls[f"{method}, stream"] = stream(iter([garbage] * 3), timeout=HANG_LIMIT_S)
        refusals = {name: (call.code(), "token" in call.details()) for name, call in calls.items()}
    assert refusals == dict.fromkeys(calls, (grpc.StatusCode.UNAUTHENTICATED, True))
    with open_channel(guarded.address, lab.good) as channel:
        unknown: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/cgpo.v1.Link/Unknown")
        assert refused(lambda: unknown(b"", timeout=HANG_LIMIT_S))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_health_is_told_to_those_with_the_token(guarded: Ingest, lab: Lab) -> None:
    request = health_pb2.HealthCheckRequest(service="cgpo.v1.Link")
    with channel_without_token(guarded.address, lab.good) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        code, _ = refused(lambda: stub.Check(request, timeout=HANG_LIMIT_S))
        assert code is grpc.StatusCode.UNAUTHENTICATED
    with open_channel(guarded.address, lab.good) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=HANG_LIMIT_S)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_only_the_exact_token_counts(guarded: Ingest, lab: Lab) -> None:
    token = lab.good.token
    headers = [
        "",
        "Bearer",
        "Bearer ",
        f"bearer {token}",
        f"Basic {token}",
        token,
        f"Bearer {token}x",
        f"Bearer  {token}",
    ]
    headers.append(f"Bearer {token[:-1]}")
    with channel_without_token(guarded.address, lab.good) as channel:
        stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]

        def call(*given: str) -> Any:
            metadata = [("authorization", value) for value in given]
            return stub.Ping.future(link_pb2.PingRequest(), metadata=metadata, timeout=HANG_LIMIT_S)

        wrong = {header: call(header) for header in headers}
        wrong["two"] = call("Bearer guess", f"Bearer {token}")
        assert {header: reply.code() for header, reply in wrong.items()} == dict.fromkeys(
            wrong, grpc.StatusCode.UNAUTHENTICATED
        )
        assert call(f"Bearer {token}").result().protocol_version > 0


def test_a_hello_in_anothers_name_takes_no_lease(guarded: Ingest, lab: Lab, connect: Callable[..., Actor]) -> None:
    with open_channel(guarded.address, Credentials.load(lab.second)) as channel:
        stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
        request = hello()
        request.take_over = True
        code, text = refused(lambda: stub.Hello(request, timeout=HANG_LIMIT_S))
        assert (code, "'second'" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
    robot = connect(guarded.address, credentials=lab.good)
    robot.offer(range(2))
    robot.drain()


def test_whoever_has_one_actors_credentials_cannot_take_all_calls(
    tmp_path: Path, lab: Lab, connect: Callable[..., Actor]
) -> None:
    ingest = Ingest(tmp_path / "few", "--credentials", str(lab.learner), "--max-actors", "1").start()
    is_over = threading.Event()
    try:
        with open_channel(ingest.address, Credentials.load(lab.second)) as channel:
            calls = unfinished_pings(channel, 40, is_over)
            wait_until(lambda: sum(call.done() for call in calls) == 40 - 8)
            robot = connect(ingest.address, credentials=lab.good)
            robot.offer(range(3))
            robot.drain()
            is_over.set()
            wait_until(lambda: all(call.done() for call in calls))
            ping(channel)
    finally:
        is_over.set()
        ingest.kill()


def hostile_bytes(rng: random.Random) -> bytes:
    """Return something that no client of ours sends first."""
    hello_tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(100)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(rng.randrange(200))
    return rng.choice(
        [rng.randbytes(rng.randrange(1, 65536)), hello_tls, hello_tls[: rng.randrange(1, 20)], preface,
         b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x03\xff\xff" + bytes(65535), b""]
    )  # fmt: skip


def test_bytes_from_strangers_leave_the_learner_and_its_log_as_they_were(
    guarded: Ingest, lab: Lab, connect: Callable[..., Actor]
) -> None:
    rng = random.Random(0)
    host, _, port = guarded.address.rpartition(":")
    robot = connect(guarded.address, credentials=lab.good)
    robot.offer(range(1))
    robot.drain()
    log_before = guarded.log_path.read_text()
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.load_verify_locations(cadata=lab.good.ca_pem.decode())
    anonymous.set_alpn_protocols(["h2"])
    for round_number in range(1, 200):
        robot.offer(range(round_number, round_number + 1))
        with socket.create_connection((host, int(port)), HANG_LIMIT_S) as plain:
            try:
                if round_number % 4 == 0:  # through TLS, without a certificate: nothing of it may be read
                    with anonymous.wrap_socket(plain, server_hostname=host) as session:
                        session.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(500))
                        assert session.recv(1) == b""
                else:
                    plain.sendall(hostile_bytes(rng))
            except OSError:
                pass  # hung up on
    robot.drain()
    assert guarded.process is not None
    assert guarded.process.poll() is None
    assert robot.link.statistics.reconnects == 0
    assert [sequence for _, _, sequence in guarded.sequences()] == [*range(200)]
    assert guarded.log_path.read_text() == log_before, "whoever writes a line for nothing fills the disk"


def test_a_proxy_for_the_web_does_not_get_the_link(guarded: Ingest, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert_works(guarded, lab.good)


def examine(ingest: Ingest, credentials: Path | None) -> dict[str, Result]:
    with contextlib.ExitStack() as closing:
        checks = link_checks(ingest.address, "", lambda: 0.1, closing, credentials=credentials, actor_id="robot")
        return {finding.name: finding.result for finding in Runner().run(checks)}


def test_the_doctor_examines_a_guarded_learner(
    guarded: Ingest, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actor.doctor.link._LOAD_S", 0.1)
    found = examine(guarded, lab.robot)
    assert {name for name, result in found.items() if result.status is Status.FAILED} == set()
    assert "50 pings" in found["round trip"].measured
    assert found["credentials"].status is Status.OK

    without = examine(guarded, None)["reachable"]
    assert (without.status, "--credentials FOLDER" in without.fix) == (Status.FAILED, True)
    strangers = examine(guarded, lab.others_robot)["reachable"]
    assert (strangers.status, "Copy the folder" in strangers.fix) == (Status.FAILED, True)

    renewed = tmp_path / "renewed"
    certs.make_leaf(lab.learner.parent / "ca", renewed, "robot", "another-token-" * 4, (), 90 * DAY)
    outdated = examine(guarded, renewed)
    assert outdated["reachable"].status is Status.OK
    assert (outdated["protocol"].status, "again" in outdated["protocol"].fix) == (Status.FAILED, True)

    port = check_port(guarded.address, lab.learner)
    assert (port.status, "a learner of" in port.measured) == (Status.OK, True)


def test_connections_that_say_nothing_do_not_keep_actors_out(
    guarded: Ingest, lab: Lab, connect: Callable[..., Actor]
) -> None:
    host, _, port = guarded.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), HANG_LIMIT_S) for _ in range(300)]
    try:
        robot = connect(guarded.address, credentials=lab.good)
        robot.offer(range(3))
        robot.drain()  # with gRPC's own limits it would take two minutes
    finally:
        for connection in silent:
            connection.close()


def test_a_lab_network_is_warned_of_again_and_again(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "run")
    program = (
        "import sys; import learner.ingest as i; from policy.cli import run_main; i._WARNING_PERIOD_S = 0.05; "
        "sys.exit(run_main(i.main))"
    )
    command = [sys.executable, "-c", program, *ingest.command("--insecure-lab-network", host="0.0.0.0")[3:]]
    with ingest.log_path.open("ab") as log:
        ingest.process = subprocess.Popen(command, stderr=log)
    wait_until(lambda: ingest.log_path.read_text().count("neither encrypted nor authenticated") >= 4)
    ingest.stop()


def test_the_two_ways_to_leave_this_machine_exclude_each_other(tmp_path: Path, lab: Lab) -> None:
    flags = ("--credentials", str(lab.learner), "--insecure-lab-network")
    command = Ingest(tmp_path / "run").command(*flags, host="0.0.0.0")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=HANG_LIMIT_S, check=False)
    assert ended.returncode == EXIT_CONFIG
    assert "contradict each other" in ended.stderr


def test_the_learner_hands_its_credentials_to_ingest(tmp_path: Path, lab: Lab) -> None:
    config = LearnerConfig(credentials=lab.learner, host="0.0.0.0", run_dir=tmp_path)
    command = ingest_command(config, tmp_path / "config.json", tmp_path / "ingest.json")
    assert command[command.index("--credentials") + 1] == str(lab.learner)
    assert lab.good.token not in " ".join(command), "other users of this machine can read it"
    plain = ingest_command(replace(config, credentials=None), tmp_path / "config.json", tmp_path / "ingest.json")
    assert "--credentials" not in plain


def test_an_actor_with_anothers_credentials_is_told_before_it_records(tmp_path: Path, lab: Lab) -> None:
    config = ActorConfig(actor_id="robot", credentials=lab.second, run_dir=tmp_path)
    with contextlib.ExitStack() as closing, pytest.raises(ConfigError, match=r"those of 'second'.*--actor-id second"):
        open_uplink(config, SPECS, "a", 0, closing, must_stop=lambda: True, say=lambda line: None)
    assert not (tmp_path / "spool.sqlite").exists()
