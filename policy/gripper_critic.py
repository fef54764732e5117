"""The three-way gripper critic of actor.gripper = discrete: close, stay or open by value (HIL-SERL's hybrid)."""

import torch
from torch import Tensor, nn

from policy.config import PolicyConfig
from policy.encoder import feature_dim
from policy.layers import bounded_mlp
from policy.spec import Specs

NUM_CHOICES = 3  # close, stay, open: the gripper's element of an action is -1, 0 or 1


class GripperCritic(nn.Module):
    """Feature (B, F) -> values (B, 3) of close, stay and open."""

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        super().__init__()
        self.trunk = bounded_mlp(feature_dim(specs, config), config.gripper_critic_hidden)
        self.values = nn.Linear(config.gripper_critic_hidden[-1], NUM_CHOICES)

    def forward(self, feature: Tensor) -> Tensor:
        values: Tensor = self.values(self.trunk(feature))
        return values


def choice_of(element: Tensor) -> Tensor:
    """Return the choice 0, 1 or 2 of the gripper's element in [-1, 1]; beyond +-0.5 it moves (ActionSpec)."""
    return 1 + (element > 0.5).long() - (element < -0.5).long()


def element_of(choice: Tensor) -> Tensor:
    """Return the gripper's element -1, 0 or 1 of a choice."""
    return choice.to(torch.get_default_dtype()) - 1
