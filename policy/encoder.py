"""From observations to features: a frozen image backbone, and the trained heads that algorithms own and publish.

    uint8 image --backbone (frozen, once per state)--> map --head per camera--> feature --+
    vector ----------------------------------------------- proprioception head ----------+--> (B, F)

Without images the feature is the vector itself, and nothing here has parameters.
"""

from typing import NamedTuple

from torch import Tensor, nn

from policy.config import PolicyConfig
from policy.errors import ConfigError
from policy.spec import Specs


class EncoderInput(NamedTuple):
    """A batch of observations after the frozen part. Rows of all tensors belong together."""

    vector: Tensor  # (B, V) from ObservationSpec.normalise
    maps: tuple[Tensor, ...] = ()  # one per camera in the spec's order, (B, C, h, w), from the backbone


class ObservationHeads(nn.Module):
    """EncoderInput -> feature (B, F): the trained part, by the critic's loss as in DrQ and HIL-SERL."""

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        super().__init__()
        if specs.observation.images:
            raise ConfigError(f"image observations need policy.encoder; it is {config.encoder!r}")
        self.feature_dim = specs.observation.vector_dim

    def forward(self, observation: EncoderInput) -> Tensor:
        return observation.vector
