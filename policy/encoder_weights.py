"""Where the frozen backbone's weights come from: a converted file named by its SHA-256, or a fixed random draw."""

import os
import re
from pathlib import Path

import numpy as np
import torch

from policy.errors import ConfigError, WeightsError
from policy.resnet import ResNet10
from policy.weights import deserialise, load_strict

RANDOM = "random"
DIRECTORY_VARIABLE = "CGPO_ENCODER_DIR"
SOURCE_URL = "https://github.com/rail-berkeley/serl/releases/download/resnet10/resnet10_params.pkl"
_RANDOM_SEED = 10


def load_backbone(encoder_weights: str) -> ResNet10:
    """Return the frozen ResNet-10 that PolicyConfig.encoder_weights names, on the CPU.

    Raises ConfigError when the name is empty or no SHA-256 or its file is missing, WeightsError when the file is not
    what its name says.
    """
    backbone = ResNet10()
    if encoder_weights == RANDOM:
        _draw(backbone)
    else:
        _load(backbone, encoder_weights)
    backbone.requires_grad_(False).eval()
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def file_name(digest: str) -> str:
    """Return the name of the converted file with that SHA-256."""
    return f"resnet10-{digest[:12]}.safetensors"


def search_directories() -> list[Path]:
    """Return where converted files are looked for: $CGPO_ENCODER_DIR, then encoders/ in the project folder."""
    own = os.environ.get(DIRECTORY_VARIABLE)
    project = Path(__file__).resolve().parent.parent / "encoders"
    return [Path(own), project] if own else [project]


def _load(backbone: ResNet10, digest: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(
            f"policy.encoder_weights = {digest!r} is neither the SHA-256 of a converted file (64 hexadecimal digits) "
            f"nor {RANDOM!r}. {_how_to_make()} For a trial without them set it to {RANDOM!r}."
        )
    candidates = [directory / file_name(digest) for directory in search_directories()]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise ConfigError(
            f"the image encoder's weights with SHA-256 {digest} are not here; looked for "
            f"{' and '.join(map(str, candidates))}. Copy the file from the machine that has it, or make it. "
            f"{_how_to_make()} Another source of weights has another SHA-256."
        )
    try:
        load_strict(backbone, deserialise(path.read_bytes(), digest))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except WeightsError as error:
        raise WeightsError(f"{path} is not the encoder with SHA-256 {digest}: {error} {_how_to_make()}") from error


def _draw(backbone: ResNet10) -> None:
    """He-normal convolutions from a fixed seed; NumPy's generator, so that every machine draws the same."""
    rng = np.random.default_rng(_RANDOM_SEED)
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, torch.nn.Conv2d):
                fan_in = module.weight[0].numel()
                drawn = rng.standard_normal(tuple(module.weight.shape)) * np.sqrt(2 / fan_in)
                module.weight.copy_(torch.from_numpy(drawn.astype(np.float32)))


def _how_to_make() -> str:
    directory = search_directories()[0]
    return (
        f"To make it: curl -LO {SOURCE_URL} && python -m policy.convert_encoder resnet10_params.pkl --out {directory} "
        "(docs/encoder.md)."
    )
