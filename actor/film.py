"""A video of one episode."""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actor.env import RobotEnv
from policy.errors import ConfigError
from robot.errors import RobotError

_log = logging.getLogger(__name__)


class Film:
    """Frames of one episode. Gives up, once and aloud, where there is nothing to draw or to encode with."""

    def __init__(self, env: RobotEnv) -> None:
        self._env = env
        self._frames: list[NDArray[np.uint8]] = []
        self._is_possible = True

    def take(self) -> None:
        """Draw what the environment shows now."""
        if not self._is_possible:
            return
        try:
            self._frames.append(self._env.render())
            if self._env.waits_for_commands:
                self._env.rate.start()  # drawing is no part of a control period where time stands still meanwhile
        except (RobotError, ConfigError) as error:
            self._is_possible = False
            _log.warning("no video of this episode: %s", error)

    def save(self, path: Path) -> bool:
        """Write an mp4 at the control rate; return whether there is one."""
        if not self._frames:
            return False
        try:
            import imageio.v2 as imageio
        except ImportError:
            _log.warning("no video: install the package imageio with pip install -e '.[sim]' -c constraints.txt")
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        imageio.mimwrite(path, self._frames, fps=self._env.task.control_rate_hz)  # type: ignore[arg-type]
        return True
