"""The log into the replay, in the log's order; every trainer of a run builds the same replay from it."""

import logging

from learner.config import LearnerConfig
from learner.replay import Replay
from policy.encoder import ObservationEncoder
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, CorruptFileError
from policy.spec import Specs

logger = logging.getLogger(__name__)

_READ_LIMIT = 512


class ReplayFeed:
    """How far a log has been read into a replay."""

    def __init__(self, log: EpisodeLog, replay: Replay) -> None:
        self._log = log
        self._replay = replay
        self.position = 0

    def read(self, end: int | None = None) -> bool:
        """Add up to 512 entries, none after `end`; returns whether more may be there already."""
        limit = _READ_LIMIT if end is None else min(_READ_LIMIT, end - self.position)
        entries = self._log.read_after(self.position, limit) if limit > 0 else []
        for entry in entries:
            self._replay.add(entry.record_id, entry.body)
            self.position = entry.position
        return len(entries) == _READ_LIMIT

    def read_to(self, end: int) -> None:
        """Add all entries to `end`, which another reader has seen. Raises CorruptFileError when they are not there."""
        while self.read(end):
            pass
        if self.position < end:
            raise CorruptFileError(
                f"the episode log ends at {self.position}, but another trainer has read it to {end}: it was replaced "
                "while the learner ran, or its disk fails. See python -m learner.log verify."
            )


def refuse_write_back(config: LearnerConfig) -> None:
    """Raise ConfigError where the algorithm would keep something of each transition, which have no numbers here."""
    if config.algorithm == "dipo" and config.dipo.write_back:
        raise ConfigError(
            "dipo.write_back = true keeps a moved action of each transition, but the learner's replay does not number "
            "its transitions. Set dipo.write_back = false, as in DIPO's code; the benchmark on MuJoCo's tasks can do "
            "either."
        )


def make_replay(config: LearnerConfig, specs: Specs) -> Replay:
    """Return the empty replay. Raises ConfigError or WeightsError for images without a usable encoder."""
    refuse_write_back(config)
    encoder = ObservationEncoder(specs, config.policy).to(config.device)
    if specs.observation.images and config.replay.image_storage == "pixels" and config.device == "cpu":
        logger.warning(
            "replay.image_storage = 'pixels' encodes %d images for each batch, seconds on a CPU; set it to 'maps'",
            2 * len(specs.observation.images) * config.replay.batch_size,
        )
    return Replay(config.replay, specs.observation, specs.action.dim, config.seed, encoder, config.device)
