"""What is measured: presets at the sizes of their tasks, with synthetic transitions to learn from."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.replay_memory import SPECS, transitions
from learner.algorithms import ALGORITHMS
from learner.config import LearnerConfig
from learner.noise import Noise
from learner.replay import Batch, Replay
from learner.replay_feed import make_replay
from learner.tensor_replay import TensorReplay
from policy.cli import config_from_preset
from policy.config import load_preset, preset_names
from policy.errors import ConfigError, unknown_name
from policy.spec import ActionSpec, Field, ObservationSpec, Specs
from policy.transition import ActionSource, RecordId

# Observation and action elements. Gymnasium's v4 tasks (Ant without contact forces), and the twin's peg_in_hole.
SIZES = {
    "Ant": (27, 8),
    "HalfCheetah": (17, 6),
    "Hopper": (11, 3),
    "Humanoid": (376, 17),
    "Walker2d": (17, 6),
    "peg_in_hole": (14, 3),
}
_CAMERAS = "two_cameras"  # of 128 x 128 pixels beside 20 numbers, with 7 action elements
_REPLAY_ROWS = 2048
_IMAGE_ROWS = 300
_TERMINAL_FRACTION = 0.01


@dataclass(frozen=True)
class Case:
    """A preset at a task's size."""

    preset: str
    size: str
    config: LearnerConfig
    specs: Specs

    @property
    def name(self) -> str:
        return f"{self.preset}@{self.size}"

    @property
    def widths(self) -> tuple[int, int]:
        """Elements of observation and action."""
        return self.specs.observation.vector_dim, self.specs.action.continuous_dim


def default_names(device: str) -> list[str]:
    """Return the cases that are measured unless others are asked for: CGPO at three sizes, and every baseline.

    Two cameras are for CUDA: on a CPU the backbone alone takes seconds for each batch.
    """
    known = [preset for preset in preset_names() if _algorithm_of(preset) in ALGORITHMS]
    main = ["paper_mujoco@Ant", "paper_mujoco@HalfCheetah", "paper_mujoco@Humanoid", "sim_quick@peg_in_hole"]
    others = [preset for preset in known if preset.startswith(("reduced_mujoco", "paper_mujoco_"))]
    others.sort(key=lambda preset: not preset.startswith("reduced"))
    cameras = [f"paper_robot@{_CAMERAS}"] if device == "cuda" else []
    return main + [f"{preset}@HalfCheetah" for preset in others] + cameras


def make_case(name: str, device: str, matmul_precision: Literal["fp32", "tf32"] = "fp32") -> Case:
    """Return the case PRESET or PRESET@SIZE; the preset is a name or a path. ConfigError tells the valid names.

    A phase of cloning before the first real update is left out: it is another update, and soon over.
    """
    preset, _, size = name.rpartition("@") if "@" in name else (name, "", "")
    config = config_from_preset(LearnerConfig, "learner", load_preset(preset))
    has_images = config.policy.encoder != "none"
    if has_images:
        policy = dataclasses.replace(config.policy, encoder_weights="random")  # as much work as any others
        config = dataclasses.replace(config, policy=policy)
    sizes = {_CAMERAS: SPECS} if has_images else {name: make_specs(*widths) for name, widths in SIZES.items()}
    size = size or (_CAMERAS if has_images else "HalfCheetah" if "mujoco" in preset else "peg_in_hole")
    if size not in sizes:
        raise unknown_name(f"size of {preset}", size, list(sizes))
    cgpo = dataclasses.replace(config.cgpo, bc_warmup_steps=0)
    config = dataclasses.replace(config, device=device, matmul_precision=matmul_precision, cgpo=cgpo)
    return Case(Path(preset).stem, size, config, sizes[size])


def make_specs(observation_dim: int, action_dim: int) -> Specs:
    def field(name: str, size: int) -> Field:
        return Field(name=name, unit="1", low=(-1.0,) * size, high=(1.0,) * size)

    return Specs(ObservationSpec((field("observation", observation_dim),)), ActionSpec((field("action", action_dim),)))


def make_synthetic_replay(case: Case, num_agents: int | None) -> "SyntheticReplay | Replay":
    """Return transitions to learn from, with `sample` and `prepare` as learner.graphed_update takes them."""
    if not case.specs.observation.images:
        return SyntheticReplay(case, num_agents)
    if num_agents is not None:
        raise ConfigError("the replay of images is one agent's; populations are trained from vectors")
    replay = make_replay(case.config, case.specs)
    for number, (transition, _) in enumerate(transitions(_IMAGE_ROWS)):
        is_human = transition.episode % 2 == 0
        source = ActionSource.HUMAN_DEMONSTRATION if is_human else ActionSource.POLICY
        replay.add(RecordId("robot", "incarnation", number), dataclasses.replace(transition, source=source))
    return replay


class SyntheticReplay:
    """Random transitions that have something to learn: the reward is higher the nearer an action is to its state's.

    `demonstration_fraction` of each batch counts as a person's, as the preset says.
    """

    def __init__(self, case: Case, num_agents: int | None) -> None:
        config, (observation_dim, action_dim) = case.config, case.widths
        leading = () if num_agents is None else (num_agents,)
        generator = torch.Generator().manual_seed(0)
        best = torch.randn(observation_dim, action_dim, generator=generator) / observation_dim**0.5
        self._replay = TensorReplay(num_agents, _REPLAY_ROWS, observation_dim, action_dim, config.device)
        for _ in range(_REPLAY_ROWS):
            observation = torch.randn(*leading, observation_dim, generator=generator)
            action = 2 * torch.rand(*leading, action_dim, generator=generator) - 1
            reward = 1 - (action - torch.tanh(observation @ best)).square().mean(dim=-1)
            following = 0.9 * observation + 0.4 * torch.randn(*leading, observation_dim, generator=generator)
            is_terminal = torch.rand(leading, generator=generator) < _TERMINAL_FRACTION
            self._replay.add(observation, action, reward * config.replay.reward_scale, following, is_terminal)
        self._noise = Noise([0] * (num_agents or 1), config.device, is_population=num_agents is not None)
        self._batch_size = config.replay.batch_size
        num_human = round(config.replay.demonstration_fraction * self._batch_size)
        is_human = torch.arange(self._batch_size, device=config.device) < num_human
        self._is_human: Tensor = is_human.expand(*leading, self._batch_size)

    def prepare(self) -> None:
        """There is nothing to move to the device."""

    def sample(self) -> Batch:
        batch = self._replay.sample(self._batch_size, self._noise)
        return dataclasses.replace(batch, is_human=self._is_human)


def _algorithm_of(preset: str) -> str:
    return str(load_preset(preset).get("learner", {}).get("algorithm", "cgpo"))
