"""What ingest tells actors of the newest weights, when reading them fails at first."""

import contextlib
from pathlib import Path

import pytest
import torch

from learner.weights_feed import WeightsFeed
from policy.errors import WeightsError
from policy.weights import serialise
from policy.weights_store import WeightsManifest, WeightsStore
from tests.link_ends import wait_until


def weights(value: float) -> bytes:
    return serialise({"layer.weight": torch.tensor([value])})


def test_new_weights_that_cannot_be_read_at_once_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = WeightsStore(tmp_path / "weights")
    store.publish(weights(1.0), 1, 50)
    failures = ["too many open files"] * 3
    read = WeightsStore.read

    def fail_at_first(self: WeightsStore, manifest: WeightsManifest) -> bytes:
        if manifest.version == 2 and failures:
            raise WeightsError(f"weights version 2 cannot be read: {failures.pop()}")
        return read(self, manifest)

    monkeypatch.setattr(WeightsStore, "read", fail_at_first)
    with contextlib.closing(WeightsFeed(tmp_path)) as feed:
        store.publish(weights(2.0), 2, 100)
        wait_until(lambda: feed.news.manifest and feed.news.manifest.version == 2)
        assert feed.news.data == weights(2.0)
    assert caplog.text.count("too many open files") == 1
