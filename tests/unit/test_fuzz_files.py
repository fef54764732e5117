"""Files that a disk, a person or another program has changed, and weights as they come: refused as what they are."""

import random
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from cgpo_proto import link_pb2
from hypothesis import given
from hypothesis import strategies as st

from actor.link_session import _WeightsInbox
from actor.spool import Spool
from actor.weights_cache import WeightsCache
from learner import certs
from policy.credentials import Credentials
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, CorruptFileError, WireError
from policy.transition import RecordId
from policy.weights import serialise
from policy.weights_store import sha256
from tests.mutations import FUZZ, disturbed, mutate
from tests.transitions import SPECS, make_transition

ROUNDS = 150


@pytest.fixture(scope="module")
def valid_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.sqlite"
    log = EpisodeLog(path, SPECS)
    log.append([(RecordId("robot", "a", step), make_transition(step)) for step in range(40)])
    log.close()
    return path


@pytest.fixture(scope="module")
def valid_spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spool") / "spool.sqlite"
    spool = Spool(path, "robot", "a")
    for step in range(40):
        spool.offer(make_transition(step))
    spool.close()
    return path


def read_log(path: Path) -> int:
    log = EpisodeLog(path, SPECS, read_only=True)
    try:
        return len(log.read_after(0, 1000))
    finally:
        log.close()


def read_spool(path: Path) -> int:
    spool = Spool(path, "robot", "b")
    try:
        spool.oldest_sequences()
        return len(spool.read_after(0, 1000))
    finally:
        spool.close()


@pytest.mark.parametrize(("name", "read"), [("valid_log", read_log), ("valid_spool", read_spool)])
def test_databases_with_a_few_bytes_changed(
    name: str, read: Callable[[Path], int], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Whatever SQLite says of them, it is told as what it is; and what still reads is what was written."""
    rng, refused = random.Random(5), 0
    data = request.getfixturevalue(name).read_bytes()
    for number in range(ROUNDS):
        path = tmp_path / f"{number}.sqlite"
        path.write_bytes(mutate(data, rng))
        try:
            read(path)
        except (ConfigError, CorruptFileError):
            refused += 1
    assert refused > ROUNDS // 10


VALUES: list[Any] = [None, "text", b"", b"\xff" * 50, 1.5, -1, 2**62, "\0"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("column", ["actor_id", "incarnation", "sequence", "payload", "crc32"])
def test_rows_of_a_log_with_another_value(column: str, value: Any, valid_log: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    shutil.copyfile(valid_log, path)
    with closing(sqlite3.connect(path)) as connection:
        try:
            connection.execute(f"UPDATE records SET {column} = ? WHERE position = 5", (value,))
        except sqlite3.IntegrityError:
            return  # SQLite itself keeps it out
        if column == "payload" and isinstance(value, bytes):
            connection.execute("UPDATE records SET crc32 = ? WHERE position = 5", (zlib.crc32(value),))
        connection.commit()
    if column in ("actor_id", "incarnation", "sequence"):
        assert read_log(path) == 40
    else:
        with pytest.raises((CorruptFileError, WireError)):
            read_log(path)


CREDENTIALS = ("ca.pem", "certificate.pem", "private_key.pem", "token")


@pytest.mark.parametrize("name", CREDENTIALS)
def test_credentials_with_a_few_bytes_changed(name: str, tmp_path: Path) -> None:
    certs.init(tmp_path / "lab", ["workstation.lab"], ["robot"], timedelta(days=365))
    folder = tmp_path / "lab" / "actors" / "robot"
    assert Credentials.load(folder).token
    path, rng, refused = folder / name, random.Random(6), 0
    original = path.read_bytes()
    for number in range(40):
        path.write_bytes(rng.randbytes(2000) if number % 4 == 0 else mutate(original, rng))
        try:
            Credentials.load(folder)
        except ConfigError:
            refused += 1
    assert refused >= 10, "random bytes at least"


WEIGHTS = serialise({"weight": torch.ones(2, 3)})
CHUNK = link_pb2.WeightsChunk(version=3, offset=0, data=WEIGHTS)
CHUNK.manifest.num_bytes = len(WEIGHTS)
CHUNK.manifest.sha256 = sha256(WEIGHTS)
CHUNK.manifest.learner_step = 7
CHUNK.manifest.published_wall_s = 1.0


@FUZZ
@given(data=st.data())
def test_weights_as_they_come(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Only whole weights under their hash are ever used; a disorder ends the connection."""
    cache = WeightsCache(tmp_path_factory.getbasetemp() / "cache")
    cache.newest = None
    inbox = _WeightsInbox(cache)
    for _ in range(data.draw(st.integers(1, 4))):
        try:
            inbox.take(data.draw(disturbed(CHUNK)))
        except ConnectionError:
            inbox = _WeightsInbox(cache)
    if cache.newest is not None:
        assert cache.newest.tensors["weight"].tolist() == [[1.0] * 3] * 2
        assert cache.newest_sha256 == sha256(WEIGHTS)
