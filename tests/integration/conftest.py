"""Both ends of the link, closed after each test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cgpo_proto import link_pb2_grpc

from policy.grpc_options import CHANNEL_OPTIONS
from tests.link_ends import Actor, Ingest


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    ingest = Ingest(tmp_path / "run").start()
    yield ingest
    assert ingest.process is not None
    ingest.kill()


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., Actor]]:
    """Return a function that starts an actor in a folder of its own name; all are closed at the end."""
    actors: list[Actor] = []

    def start(address: str, name: str = "actor", **changes: Any) -> Actor:
        actors.append(Actor(tmp_path / name, address, **changes))
        return actors[-1]

    yield start
    for actor_process in actors:
        actor_process.close()


@pytest.fixture
def stub(ingest: Ingest) -> Iterator[link_pb2_grpc.LinkStub]:
    with grpc.insecure_channel(ingest.address, options=CHANNEL_OPTIONS) as channel:
        yield link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
