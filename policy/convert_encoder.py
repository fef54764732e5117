"""Convert HIL-SERL's published ResNet-10 to the file that policy.encoder_weights names by its SHA-256.

    python -m policy.convert_encoder SOURCE --out DIR

SOURCE is resnet10_params.pkl of HIL-SERL, or model.safetensors of LeRobot's port (docs/encoder.md says where they are).
Both hold the same network; the same values give the same file.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from policy.array_pickle import read_arrays
from policy.cli import run_main
from policy.encoder_weights import DIRECTORY_VARIABLE, file_name, search_directories
from policy.errors import EXIT_OK, ConfigError, WeightsError
from policy.files import make_folder, replace_durably
from policy.resnet import ResNet10
from policy.weights import load_strict, serialise
from policy.weights_store import sha256

_PICKLE_START = b"\x80"
_HEAD = "output_head"  # ImageNet's classes, not part of the frozen encoder
_FLAX_NAMES = (
    (r"^conv_init\.kernel$", "stem.weight"),
    (r"^norm_init\.", "stem_norm."),
    (r"^ResNetBlock_(\d)\.", r"blocks.\1."),
    (r"\.Conv_0\.kernel$", ".conv1.weight"),
    (r"\.Conv_1\.kernel$", ".conv2.weight"),
    (r"\.MyGroupNorm_0\.", ".norm1."),
    (r"\.MyGroupNorm_1\.", ".norm2."),
    (r"\.conv_proj\.kernel$", ".projection.weight"),
    (r"\.norm_proj\.", ".projection_norm."),
    (r"\.scale$", ".weight"),
)
_LEROBOT_NAMES = (
    (r"\.(conv|group_norm)\.", "."),  # wrappers of PyTorch's own layers
    (r"^embedder\.0\.", "stem."),
    (r"^embedder\.1\.", "stem_norm."),
    (r"^encoder\.stages\.", "blocks."),
    (r"\.shortcut\.0\.", ".projection."),
    (r"\.shortcut\.1\.", ".projection_norm."),
)


def convert(source: bytes) -> bytes:
    """Return the converted file. Raises WeightsError when `source` is not the published network."""
    if source.startswith(_PICKLE_START):
        arrays = dict(_flatten(read_arrays(source)))
        tensors = {_rename(name, _FLAX_NAMES): _from_flax(array) for name, array in arrays.items()}
    else:
        try:
            loaded = safetensors.torch.load(source)
        except SafetensorError as error:
            raise WeightsError(f"{len(source)} bytes are neither a pickle nor a safetensors file: {error}") from error
        tensors = {_rename(name, _LEROBOT_NAMES): tensor.float() for name, tensor in loaded.items()}
    backbone = ResNet10()
    load_strict(backbone, tensors)
    return serialise(backbone.state_dict())


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if not prefix and key == _HEAD:
            continue
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _from_flax(array: np.ndarray) -> Tensor:
    """Kernels of Flax are (h, w, in, out), PyTorch's (out, in, h, w)."""
    ordered = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return torch.from_numpy(np.array(ordered, dtype=np.float32, order="C"))


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m policy.convert_encoder", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", type=Path, help="resnet10_params.pkl (HIL-SERL) or model.safetensors (LeRobot)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the converted file")
    arguments = parser.parse_args()
    try:
        source = arguments.source.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {arguments.source}: {error.strerror}") from error
    converted = convert(source)
    digest = sha256(converted)
    path = arguments.out / file_name(digest)
    make_folder(arguments.out)
    replace_durably(path, converted)
    sys.stdout.write(f"read  {arguments.source}, SHA-256 {sha256(source)}\nwrote {path}, SHA-256 {digest}\n")
    if arguments.out.resolve() not in [directory.resolve() for directory in search_directories()]:
        sys.stdout.write(
            f"Both machines need it in encoders/ of the project, or {DIRECTORY_VARIABLE}={arguments.out}\n"
        )
    sys.stdout.write(f'For [policy] of the preset:\nencoder = "resnet10"\nencoder_weights = "{digest}"\n')
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
