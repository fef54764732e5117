"""The logs that examples come from: one index over all, which follows those that still grow."""

import logging
from collections.abc import Sequence
from pathlib import Path

from learner.config import ClassifierConfig
from learner.log.folder import read_specs
from learner.reward_classifier.examples import EpisodeIndex
from learner.reward_classifier.frames import FrameStore
from policy.config import PolicyConfig
from policy.encoder import ObservationEncoder
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError
from policy.spec import Specs
from policy.success_classifier import classifier_inputs

_READ_LIMIT = 512

logger = logging.getLogger(__name__)


class RunLogs:
    """The episode logs of one or more learner run folders with the same cameras."""

    def __init__(
        self,
        run_dirs: Sequence[Path],
        specs: Specs,
        policy: PolicyConfig,
        config: ClassifierConfig,
        device: str = "cpu",
    ) -> None:
        """Open the logs without reading them. `specs` must be those of every folder (see read_specs)."""
        self.run_dirs = tuple(run_dirs)
        self._logs = [EpisodeLog(run_dir / "log.sqlite", specs, read_only=True) for run_dir in run_dirs]
        self._positions = [0] * len(self._logs)
        self.index = EpisodeIndex()
        self.store = FrameStore(self._logs, specs, ObservationEncoder(specs, policy).to(device), config.shift_px)

    def read(self) -> int:
        """Index what is new in the logs; returns the number of records."""
        total = 0
        for number, log in enumerate(self._logs):
            while entries := log.read_after(self._positions[number], _READ_LIMIT):
                for entry in entries:
                    self.index.add(entry, number)
                self._positions[number] = entries[-1].position
                total += len(entries)
        return total

    def close(self) -> None:
        for log in self._logs:
            log.close()


def common_specs(run_dirs: Sequence[Path], policy: PolicyConfig) -> Specs:
    """Return the first folder's specs. Raises ConfigError when another one's cannot be read with them."""
    first, *others = (read_specs(run_dir) for run_dir in run_dirs)
    for run_dir, specs in zip(run_dirs[1:], others, strict=True):
        same_fields = specs.observation.names == first.observation.names and specs.action.dim == first.action.dim
        if not same_fields or classifier_inputs(specs, policy) != classifier_inputs(first, policy):
            raise ConfigError(
                f"{run_dir} observes {specs.observation.names} with {specs.action.dim} action elements, "
                f"{run_dirs[0]} {first.observation.names} with {first.action.dim}, or sizes and bounds differ: one "
                "classifier cannot learn from both"
            )
    return first
