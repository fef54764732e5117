"""The policy as the robot runs it, of whatever distribution: encoder, action head, and gripper critic if any."""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from policy.config import PolicyConfig
from policy.deterministic_policy import DeterministicActor
from policy.diffusion_policy import DiffusionActor
from policy.encoder import ObservationEncoder, ObservationHeads
from policy.gaussian_policy import GaussianActor
from policy.gripper_critic import GripperCritic, element_of
from policy.spec import Observation, Specs
from policy.weights import load_strict


class ActionHead(Protocol):
    """Draws the continuous elements of an action."""

    modules: dict[str, nn.Module]
    """What the learner publishes for it, by the prefix of the tensors' names."""

    def prepare(self) -> None:
        """Make ready what acting needs of the modules' weights; to be called after every change of these."""

    def act(self, feature: Tensor, candidates: int | None, generator: torch.Generator) -> Tensor:
        """Return an action (continuous_dim,) in [-1, 1] for one state's feature (1, F).

        candidates: how many samples the published critic chooses from; None: as configured, with whatever noise the
        policy explores. Raises ConfigError for more than 1 without such a critic.
        """


_HEADS: dict[str, Callable[[Specs, PolicyConfig], ActionHead]] = {
    "diffusion": DiffusionActor,
    "gaussian": GaussianActor,
    "deterministic": DeterministicActor,
}


class ActingPolicy:
    """Chooses actions with the weights that the learner publishes."""

    def __init__(self, specs: Specs, config: PolicyConfig, seed: int) -> None:
        """Raise ConfigError or WeightsError when observations hold images and the encoder's file cannot be had."""
        self._generator = torch.Generator().manual_seed(seed)
        self._encoder = ObservationEncoder(specs, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._head: ActionHead = _HEADS[config.distribution](specs, config)
            self._heads = ObservationHeads(specs, config)
            self._gripper = GripperCritic(specs, config) if specs.action.gripper == "discrete" else None

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all weights, or none: raises WeightsError naming the differing tensors."""
        modules = nn.ModuleDict({**self._head.modules, "heads": self._heads})
        if self._gripper is not None:
            modules["gripper"] = self._gripper
        load_strict(modules, tensors)
        self._head.prepare()

    def reseed(self, seed: int) -> None:
        """Draw the noise of the following actions anew, as if nothing had been drawn before."""
        self._generator.manual_seed(seed)

    @torch.inference_mode()
    def select_action(self, observation: Observation, candidates: int | None = None) -> NDArray[np.float32]:
        """Return an action (A,) in [-1, 1]; `candidates` as in ActionHead.act."""
        feature = self._heads(self._encoder.inputs(observation))
        action = self._head.act(feature, candidates, self._generator)
        if self._gripper is not None:
            choice = self._gripper(feature).argmax(dim=1)
            action = torch.cat([action, element_of(choice)])
        return action.numpy()
