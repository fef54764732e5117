"""Weights on their way to the actor: the newest, whole, or the last good ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cgpo_proto import link_pb2, link_pb2_grpc

from actor.weights_cache import WeightsCache
from policy.weights import serialise
from policy.weights_store import WeightsStore
from tests.link_ends import HANG_LIMIT_S, Actor, Ingest, join, wait_until


def weights(value: float) -> bytes:
    return serialise({"layer.weight": torch.full((600, 1000), value)})  # 2.4 MB: three chunks


def test_the_newest_weights_arrive_whole_with_their_version(ingest: Ingest, connect: Callable[..., Actor]) -> None:
    robot = connect(ingest.address)
    assert robot.link.latest_weights() is None
    first = ingest.weights.publish(weights(1.0), version=1, learner_step=50)
    ingest.weights.publish(weights(2.0), version=2, learner_step=100)
    newest = robot.wait_for_version(2)
    assert (newest.learner_step, newest.published_wall_s >= first.published_wall_s) == (100, True)
    assert torch.equal(newest.tensors["layer.weight"], torch.full((600, 1000), 2.0))


def test_the_last_good_weights_stay_when_newer_ones_are_damaged_or_not_finite(
    ingest: Ingest, connect: Callable[..., Actor], caplog: pytest.LogCaptureFixture
) -> None:
    robot = connect(ingest.address)
    ingest.weights.publish(weights(1.0), version=1, learner_step=50)
    good = robot.wait_for_version(1)
    store = WeightsStore(ingest.run_dir.with_name("elsewhere"))
    manifest = store.publish(weights(2.0), version=2, learner_step=100)
    data = bytearray(store.read(manifest))
    data[-1] ^= 1
    (ingest.run_dir / "weights" / manifest.file).write_bytes(data)
    (ingest.run_dir.with_name("elsewhere") / "latest.json").rename(ingest.run_dir / "weights" / "latest.json")
    wait_until(lambda: "weights version 2 refused, version 1 stays: weights are corrupt" in caplog.text)
    ingest.weights.publish(weights(float("nan")), version=3, learner_step=150)
    wait_until(lambda: "weights version 3 refused" in caplog.text)
    assert robot.link.latest_weights() is good
    ingest.weights.publish(weights(4.0), version=4, learner_step=200)
    robot.wait_for_version(4)


def test_the_cache_gives_the_last_good_weights_without_a_learner(ingest: Ingest, tmp_path: Path) -> None:
    ingest.weights.publish(weights(3.0), version=3, learner_step=150)
    robot = Actor(tmp_path / "actor", ingest.address)
    known = robot.wait_for_version(3)
    robot.close()
    restarted = Actor(tmp_path / "actor", "127.0.0.1:1")
    cached = restarted.link.latest_weights()
    restarted.close()
    assert cached is not None
    assert (cached.version, cached.learner_step, cached.published_wall_s) == (3, 150, known.published_wall_s)
    assert torch.equal(cached.tensors["layer.weight"], known.tensors["layer.weight"])


def test_a_damaged_cache_is_no_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = WeightsStore(tmp_path / "weights").publish(weights(3.0), version=3, learner_step=150)
    (tmp_path / "weights" / manifest.file).write_bytes(b"damaged")
    assert WeightsCache(tmp_path / "weights").newest is None
    assert "cached weights are not used: weights are corrupt" in caplog.text


def test_a_learner_that_counts_from_one_again_is_followed(ingest: Ingest, connect: Callable[..., Actor]) -> None:
    ingest.weights.publish(weights(9.0), version=9, learner_step=450)
    robot = connect(ingest.address)
    robot.wait_for_version(9)
    ingest.weights.publish(weights(1.0), version=1, learner_step=50)
    assert robot.wait_for_version(1).tensors["layer.weight"][0, 0] == 1.0


def test_weights_that_the_actor_has_are_not_sent_again(ingest: Ingest, stub: link_pb2_grpc.LinkStub) -> None:
    known = ingest.weights.publish(weights(1.0), version=1, learner_step=50)
    request = link_pb2.WatchWeightsRequest(have_sha256=known.sha256)
    stream = stub.WatchWeights(request, timeout=HANG_LIMIT_S, metadata=join(stub))
    ingest.weights.publish(weights(2.0), version=2, learner_step=100)
    first = next(chunk for chunk in stream if not chunk.HasField("status"))
    assert (first.version, first.manifest.learner_step) == (2, 100)
    (tensor,) = first.manifest.tensors
    assert (tensor.name, tensor.dtype, list(tensor.shape)) == ("layer.weight", "F32", [600, 1000])
    stream.cancel()
