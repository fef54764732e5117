"""Does an observation show success? A small head on the maps of the policy's own frozen image encoder.

A trained one is a folder: `manifest.json` names a safetensors file beside it and says what it was trained on. It also
travels with the policy's weights, under the prefix `success_classifier.`.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from policy.config import PolicyConfig
from policy.encoder import CameraHead, EncoderInput
from policy.errors import ConfigError, WeightsError
from policy.files import make_folder, replace_durably
from policy.spec import Specs
from policy.weights import deserialise, load_strict, serialise
from policy.weights_store import sha256

TENSOR_PREFIX = "success_classifier."
"""Of the classifier's tensors among published weights."""

_MANIFEST = "manifest.json"
_KEPT_VERSIONS = 5


class SuccessClassifier(nn.Module):
    """EncoderInput -> logit of success (B,).

    A head per camera as the policy has, with weights of its own; the vector joins where
    policy.success_classifier_vector says so, and where there are no images. Deterministic; the backbone before it is
    frozen and no part of it.
    """

    threshold: Tensor

    def __init__(self, specs: Specs, config: PolicyConfig, threshold: float = 0.5) -> None:
        """`threshold`: the least probability that counts as success. It travels with the weights."""
        super().__init__()
        images = specs.observation.images
        self.cameras = nn.ModuleList(CameraHead(image, config) for image in images)
        feature_dim = len(images) * config.image_feature_dim
        self.vector: nn.Module | None = None
        if uses_vector(specs, config):
            width = config.proprioception_feature_dim
            layer = nn.Linear(specs.observation.vector_dim, width)
            self.vector = nn.Sequential(layer, nn.LayerNorm(width), nn.Tanh())
            feature_dim += width
        self.logit = nn.Linear(feature_dim, 1)
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, observation: EncoderInput) -> Tensor:
        features = [camera(maps) for camera, maps in zip(self.cameras, observation.maps, strict=True)]
        if self.vector is not None:
            features.append(self.vector(observation.vector))
        logit: Tensor = self.logit(torch.cat(features, dim=-1))
        return logit.squeeze(-1)

    @torch.no_grad()
    def probability(self, observation: EncoderInput) -> Tensor:
        """Return the probability of success (B,)."""
        return torch.sigmoid(self(observation))


def uses_vector(specs: Specs, config: PolicyConfig) -> bool:
    return config.success_classifier_vector or not specs.observation.images


def classifier_inputs(specs: Specs, config: PolicyConfig) -> dict[str, Any]:
    """Return, as JSON values, all that decides whether a classifier trained for one set-up fits another."""
    inputs: dict[str, Any] = {"images": [dataclasses.asdict(image) for image in specs.observation.images]}
    if specs.observation.images:
        inputs |= {"encoder": config.encoder, "encoder_weights": config.encoder_weights}
        inputs |= {"spatial_blocks": config.spatial_blocks, "image_feature_dim": config.image_feature_dim}
    if uses_vector(specs, config):
        inputs |= {"fields": [dataclasses.asdict(field) for field in specs.observation.fields]}
        inputs |= {"proprioception_feature_dim": config.proprioception_feature_dim}
    return dict(json.loads(json.dumps(inputs)))  # tuples become lists, as they do on disk


@dataclass(frozen=True, kw_only=True)
class ClassifierManifest:
    """What a folder holds: which file, for which inputs, how it was trained and how good it is."""

    version: int
    file: str
    sha256: str
    created_wall_s: float
    threshold: float
    inputs: dict[str, Any]  # classifier_inputs
    counts: dict[str, Any] = field(default_factory=dict)  # frames and episodes, training and held out
    metrics: dict[str, Any] = field(default_factory=dict)  # on held-out frames
    episodes: list[list[Any]] = field(default_factory=list)  # actor, incarnation, episode, whether it is held out
    logs: list[str] = field(default_factory=list)  # run folders that the examples came from


def save_classifier(
    folder: Path, classifier: SuccessClassifier, specs: Specs, config: PolicyConfig, version: int, **details: Any
) -> ClassifierManifest:
    """Make the classifier the folder's newest version; `details` are the manifest's other fields.

    Durable when this returns; a crash before leaves the version before.
    """
    data = serialise(classifier.state_dict())
    manifest = ClassifierManifest(
        version=version,
        file=f"{version:06d}.safetensors",
        sha256=sha256(data),
        created_wall_s=time.time(),
        threshold=float(classifier.threshold),
        inputs=classifier_inputs(specs, config),
        **details,
    )
    make_folder(folder)
    replace_durably(folder / manifest.file, data)
    replace_durably(folder / _MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=1).encode())
    for old in sorted(folder.glob("*.safetensors"))[:-_KEPT_VERSIONS]:
        old.unlink()
    return manifest


def read_manifest(folder: Path) -> ClassifierManifest | None:
    """Return the newest version's manifest, None where there is none. Raises WeightsError when it is unreadable."""
    try:
        return ClassifierManifest(**json.loads((folder / _MANIFEST).read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{folder / _MANIFEST} is no manifest of a success classifier: {error}") from error


def load_classifier(folder: Path, specs: Specs, config: PolicyConfig) -> tuple[SuccessClassifier, ClassifierManifest]:
    """Return a folder's newest classifier. Raises ConfigError when there is none or it was trained for other inputs,
    WeightsError when it is damaged."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(
            f"{folder} holds no success classifier. Train one: python -m learner.reward_classifier train --log RUN "
            f"--out {folder}"
        )
    _require_same_inputs(folder, manifest.inputs, classifier_inputs(specs, config))
    try:
        data = (folder / manifest.file).read_bytes()
    except OSError as error:
        raise WeightsError(f"{folder / manifest.file}, named by the manifest, cannot be read: {error}") from error
    classifier = SuccessClassifier(specs, config)
    load_strict(classifier, deserialise(data, manifest.sha256))
    return classifier, manifest


def _require_same_inputs(folder: Path, trained: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differing = [name for name in sorted(trained.keys() | here.keys()) if trained.get(name) != here.get(name)]
    if differing:
        shown = "; ".join(f"{name}: trained with {trained.get(name)}, here {here.get(name)}" for name in differing)
        raise ConfigError(
            f"the success classifier in {folder} was trained for other inputs. {shown}. Use the same cameras, encoder "
            "and policy options, or train one from logs of this set-up."
        )
