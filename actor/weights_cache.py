"""The newest good weights of the learner: in memory for the policy, on disk for the next start."""

import logging
from pathlib import Path

from policy.errors import WeightsError
from policy.weights import PolicyWeights, deserialise
from policy.weights_store import WeightsStore
from policy.weights_store import sha256 as sha256_of

logger = logging.getLogger(__name__)


class WeightsCache:
    """Takes what the learner sent, if it is complete, undamaged and finite. One thread offers, any may read."""

    def __init__(self, directory: Path) -> None:
        """Load what an earlier process left in `directory`, if it is usable."""
        self.newest: PolicyWeights | None = None
        self.newest_sha256 = ""
        self._damaged_sha256 = ""  # of the last weights that came damaged
        self._store = WeightsStore(directory)
        try:
            manifest = self._store.latest()
            if manifest is not None:
                tensors = deserialise(self._store.read(manifest), manifest.sha256)
                self._use(
                    PolicyWeights(manifest.version, manifest.learner_step, manifest.published_wall_s, tensors),
                    manifest.sha256,
                )
        except WeightsError as error:
            logger.warning("cached weights are not used: %s", error)

    def offer(self, data: bytes, sha256: str, version: int, learner_step: int, published_wall_s: float) -> None:
        """Make these weights the newest, or say in the log why not and keep those before.

        Raises ConnectionError, once, for weights that came damaged: on another connection they come again.
        """
        try:
            tensors = deserialise(data, sha256)
        except WeightsError as error:
            kept = f"version {self.newest.version} stays" if self.newest else "there are none before"
            logger.error("weights version %d refused, %s: %s", version, kept, error)
            if sha256_of(data) != sha256 != self._damaged_sha256:
                self._damaged_sha256 = sha256
                raise ConnectionError(f"weights version {version} came damaged and are asked for again") from error
            return
        self._use(PolicyWeights(version, learner_step, published_wall_s, tensors), sha256)
        try:
            self._store.publish(data, version, learner_step, published_wall_s)
        except OSError as error:
            logger.error("weights version %d are in use, but not on disk for the next start: %s", version, error)

    def _use(self, weights: PolicyWeights, sha256: str) -> None:
        self.newest = weights
        self.newest_sha256 = sha256
