"""A cheap control task for comparing variants of an algorithm: `benchmarks.point_reach:PointReach-v0` for Gymnasium.

Numpy alone, 10 steps an episode. It has what the variants differ in and little else: six action elements that act
together, next actions that are valued, and rewards noisy enough for a critic to overestimate.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

TASK = "benchmarks.point_reach:PointReach-v0"

_DIM = 6
_HORIZON = 10
_STEP = 0.25  # distance that a full action moves the point; the centre is some four steps away
_REWARD_NOISE = 0.5


class PointReach(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Bring a point of [-1, 1]^6 to the centre and hold it there.

    Observation (7,): the point, and the share of the episode that is left. Action (6,) in [-1, 1]: a displacement in
    axes turned against the point's. Reward: 1 - 3 mean(point^2), so 0 on average at the start and 1 in the centre, plus
    normal noise of standard deviation 0.5. Ends after 10 steps.
    """

    observation_space = Box(-1.0, 1.0, (_DIM + 1,), np.float32)
    action_space = Box(-1.0, 1.0, (_DIM,), np.float32)

    def __init__(self) -> None:
        # The same turn in every environment: it is part of the task.
        self._turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(_DIM, _DIM)))
        self._point = np.zeros(_DIM)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._point = self.np_random.uniform(-1, 1, _DIM)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._point = np.clip(self._point + _STEP * self._turn @ np.clip(action, -1, 1), -1, 1)
        reward = 1 - 3 * float(np.mean(self._point**2)) + _REWARD_NOISE * float(self.np_random.normal())
        return self._observation(), reward, self._steps == _HORIZON, False, {}

    def _observation(self) -> NDArray[np.float32]:
        left = 1 - self._steps / _HORIZON
        return np.append(self._point, left).astype(np.float32)


gymnasium.register("PointReach-v0", f"{__name__}:PointReach")
