"""The image encoder against its published architecture, written out once more in NumPy, and its refusals."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from policy.config import PolicyConfig
from policy.encoder import EncoderInput, ObservationEncoder, ObservationHeads, feature_dim
from policy.encoder_weights import DIRECTORY_VARIABLE, file_name, load_backbone
from policy.errors import ConfigError, WeightsError
from policy.fast.convolution import FrozenConvolution, freeze_convolutions, is_ordering_used
from policy.image_codec import encode_image
from policy.resnet import ResNet10, map_size
from policy.spec import ActionSpec, Field, ImageField, ObservationSpec, Specs
from policy.weights import serialise
from policy.weights_store import sha256

CONFIG = PolicyConfig(encoder="resnet10", encoder_weights="random", image_feature_dim=16, proprioception_feature_dim=8)
ACTION = ActionSpec((Field(name="delta", unit="m", low=(-1.0,), high=(1.0,)),))
VECTOR = (Field(name="number", unit="m", low=(-1.0, -1.0), high=(1.0, 1.0)),)
STATE = Specs(ObservationSpec(VECTOR), ACTION)
TWO_CAMERAS = Specs(
    ObservationSpec(VECTOR, tuple(ImageField(name=name, height=32, width=48) for name in ("wrist", "side"))), ACTION
)
PUBLISHED_PARAMETERS = 4_905_792
"""Of HIL-SERL's frozen ResNet-10 without ImageNet's classes; other projects that check the published file count the
same (docs/encoder.md). By hand: stem 9,408 + 128, blocks 73,984 + 230,144 + 919,040 + 3,673,088."""

Array = NDArray[Any]


def images(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def same_padding(x: Array, kernel: int, stride: int, value: float = 0.0) -> Array:
    """XLA's SAME for (B, H, W, C): the odd pixel goes to the end."""
    widths = [(0, 0)]
    for size in x.shape[1:3]:
        total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
        widths.append((total // 2, total - total // 2))
    return np.pad(x, [*widths, (0, 0)], constant_values=value)


def windows(x: Array, kernel: int, stride: int) -> Array:
    """(B, h, w, C, kernel, kernel)"""
    return np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]


def convolve(x: Array, weight: torch.Tensor, stride: int) -> Array:
    result: Array = np.einsum("bhwcij,ocij->bhwo", windows(x, weight.shape[-1], stride), weight.double().numpy())
    return result


def group_norm(x: Array, scale: torch.Tensor, bias: torch.Tensor) -> Array:
    batch, height, width, channels = x.shape
    grouped = x.reshape(batch, height, width, 4, channels // 4)
    mean, variance = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    result: Array = normal * scale.double().numpy() + bias.double().numpy()
    return result


def oracle(pixels: torch.Tensor, w: dict[str, torch.Tensor]) -> Any:
    """resnetv1-10-frozen in Flax's layout and padding; returns (B, h, w, 512)."""
    relu: Callable[[Array], Array] = lambda x: np.maximum(x, 0)  # noqa: E731
    x = (pixels.numpy() / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    x = convolve(np.pad(x, [(0, 0), (3, 3), (3, 3), (0, 0)]), w["stem.weight"], 2)
    x = relu(group_norm(x, w["stem_norm.weight"], w["stem_norm.bias"]))
    x = windows(same_padding(x, 3, 2, -np.inf), 3, 2).max((-1, -2))
    for stage in range(4):
        stride, block = (1 if stage == 0 else 2), f"blocks.{stage}."
        y = convolve(same_padding(x, 3, stride), w[block + "conv1.weight"], stride)
        y = relu(group_norm(y, w[block + "norm1.weight"], w[block + "norm1.bias"]))
        y = convolve(same_padding(y, 3, 1), w[block + "conv2.weight"], 1)
        y = group_norm(y, w[block + "norm2.weight"], w[block + "norm2.bias"])
        if stage:
            x = convolve(x, w[block + "projection.weight"], stride)
            x = group_norm(x, w[block + "projection_norm.weight"], w[block + "projection_norm.bias"])
        x = relu(x + y)
    return x


@pytest.mark.parametrize("size", [(128, 128), (33, 70)], ids=["128 x 128", "odd"])
def test_the_backbone_computes_what_the_published_one_does(size: tuple[int, int]) -> None:
    backbone = load_backbone("random")
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():  # scales and biases that do something
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 3)
    pixels = images(2, *size)
    maps = backbone(pixels)
    assert maps.shape == (2, 512, *map_size(*size))
    expected = oracle(pixels, backbone.state_dict())
    np.testing.assert_allclose(maps.permute(0, 2, 3, 1), expected, atol=2e-4 * np.abs(expected).max())


def test_the_map_of_128_pixels_is_4_x_4_and_parameters_are_as_published() -> None:
    assert map_size(128, 128) == (4, 4)
    assert sum(parameter.numel() for parameter in ResNet10().parameters()) == PUBLISHED_PARAMETERS
    assert len(ResNet10().state_dict()) == 36


def test_random_weights_are_the_same_everywhere_and_frozen() -> None:
    one, other = load_backbone("random"), load_backbone("random")
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in one.parameters())
    # A draw that a NumPy release must not change: learner and actor may differ in it.
    assert one.stem.weight.flatten()[0].item() == pytest.approx(-0.128696, abs=1e-6)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    return tmp_path


def test_a_converted_file_is_found_by_its_hash(folder: Path) -> None:
    backbone = load_backbone("random")
    data = serialise({name: 2 * tensor for name, tensor in backbone.state_dict().items()})
    (folder / file_name(sha256(data))).write_bytes(data)
    loaded = load_backbone(sha256(data))
    torch.testing.assert_close(loaded.stem.weight, 2 * backbone.stem.weight, rtol=0, atol=0)


def test_a_missing_file_says_which_where_and_how(folder: Path) -> None:
    digest = "ab" * 32
    with pytest.raises(ConfigError) as caught:
        load_backbone(digest)
    message = str(caught.value)
    project = Path(__file__).resolve().parents[2] / "encoders"
    for part in (digest, str(folder / file_name(digest)), str(project), "python -m policy.convert_encoder", "curl"):
        assert part in message


@pytest.mark.parametrize("name", ["", "Random", "resnet10", "AB" * 32, "ab" * 31])
def test_what_is_no_hash_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="SHA-256 of a converted file"):
        load_backbone(name)


def test_another_file_under_the_name_is_refused(folder: Path) -> None:
    digest = "ab" * 32
    (folder / file_name(digest)).write_bytes(serialise(ResNet10().state_dict()))
    with pytest.raises(WeightsError, match=f"(?s){digest}.*corrupt"):
        load_backbone(digest)


def test_a_file_of_another_network_is_refused(folder: Path) -> None:
    tensors = ResNet10().state_dict()
    del tensors["blocks.3.norm2.bias"]
    data = serialise(tensors)
    (folder / file_name(sha256(data))).write_bytes(data)
    with pytest.raises(WeightsError, match=r"blocks\.3\.norm2\.bias is missing"):
        load_backbone(sha256(data))


def test_without_images_the_feature_is_the_vector_and_nothing_has_parameters() -> None:
    encoder, heads = ObservationEncoder(STATE, PolicyConfig()), ObservationHeads(STATE, PolicyConfig())
    inputs = encoder.inputs({"number": np.array([0.5, -0.25], np.float32)})
    assert encoder.backbone is None
    assert not list(heads.parameters())
    assert heads(inputs).tolist() == [[0.5, -0.25]]
    assert heads.feature_dim == feature_dim(STATE, PolicyConfig()) == 2


@pytest.mark.parametrize("part", [ObservationEncoder, ObservationHeads])
def test_images_without_an_encoder_are_refused(part: Callable[[Specs, PolicyConfig], object]) -> None:
    with pytest.raises(ConfigError, match=r"images \(wrist, side\).*policy.encoder = 'resnet10'"):
        part(TWO_CAMERAS, PolicyConfig())


def test_an_observation_becomes_a_map_of_each_camera_in_order() -> None:
    encoder = ObservationEncoder(TWO_CAMERAS, CONFIG)
    wrist, side = images(2).numpy()
    number = np.array([0.5, -0.25], np.float32)
    inputs = encoder.inputs({"side": side, "wrist": encode_image(wrist, "png"), "number": number})
    assert inputs.vector.tolist() == [[0.5, -0.25]]
    for maps, image in zip(inputs.maps, (wrist, side), strict=True):
        torch.testing.assert_close(maps, encoder.maps(torch.from_numpy(image)[None]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(inputs.maps[0], inputs.maps[1])


def test_maps_do_not_mix_images() -> None:
    encoder = ObservationEncoder(TWO_CAMERAS, CONFIG)
    pixels = images(6)
    one_by_one = torch.cat([encoder.maps(image[None]) for image in pixels])
    torch.testing.assert_close(encoder.maps(pixels), one_by_one, rtol=1e-4, atol=1e-4)


def test_heads_are_spatial_embeddings_of_each_channel_then_bounded_layers() -> None:
    heads = ObservationHeads(TWO_CAMERAS, CONFIG)
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(3, 2, generator=generator)
    maps = tuple(torch.randn(3, 512, 1, 2, generator=generator) for _ in range(2))
    features = heads(EncoderInput(vector, maps))
    assert features.shape == (3, feature_dim(TWO_CAMERAS, CONFIG)) == (3, 2 * 16 + 8)
    head: Any = heads.cameras[1]
    rows = []
    for row in maps[1]:  # (512, 1, 2)
        sums = [(row[c, ..., None] * head.embedding[c]).sum((0, 1)) for c in range(512)]  # each (S,)
        linear = head.layer[0](torch.cat(sums))
        rows.append(torch.tanh((linear - linear.mean()) / (linear.var(unbiased=False) + 1e-5).sqrt()))
    torch.testing.assert_close(features[:, 16:32], torch.stack(rows), rtol=1e-4, atol=1e-4)


def test_the_heads_learn_and_the_backbone_does_not() -> None:
    encoder, heads = ObservationEncoder(TWO_CAMERAS, CONFIG), ObservationHeads(TWO_CAMERAS, CONFIG)
    pixels = images(2)
    inputs = EncoderInput(torch.zeros(2, 2), (encoder.maps(pixels), encoder.maps(pixels)))
    heads(inputs).square().sum().backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())
    assert encoder.backbone is not None
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())


def test_camera_heads_have_the_size_of_the_spec() -> None:
    config = replace(CONFIG, spatial_blocks=3)
    heads = ObservationHeads(TWO_CAMERAS, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in heads.state_dict().items()}
    assert shapes["cameras.0.embedding"] == (512, 1, 2, 3)
    assert shapes["cameras.1.layer.0.weight"] == (16, 512 * 3)
    assert shapes["proprioception.0.weight"] == (8, 2)


@pytest.mark.parametrize("size", [(128, 128), (33, 70)], ids=["128 x 128", "odd"])
@pytest.mark.parametrize("count", [1, 3])
def test_frozen_convolutions_compute_what_they_were_made_of(count: int, size: tuple[int, int]) -> None:
    backbone, frozen = load_backbone("random"), load_backbone("random")
    freeze_convolutions(frozen)
    assert is_ordering_used(), "this PyTorch has oneDNN, so its weights are ordered once"
    assert not any(isinstance(layer, nn.Conv2d) for layer in frozen.modules())
    assert frozen.state_dict().keys() == backbone.state_dict().keys()
    pixels = images(count, *size)
    expected = backbone(pixels)
    tolerance = 1e-5 * float(expected.abs().max())
    layers = [layer for layer in frozen.modules() if isinstance(layer, FrozenConvolution)]
    torch.testing.assert_close(frozen(pixels), expected, rtol=1e-5, atol=tolerance)
    assert all(layer._ordered is None for layer in layers), "a pass that may be differentiated takes the weights"
    ordered = []
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(frozen(pixels), expected, rtol=1e-5, atol=tolerance)
            ordered.append([layer._ordered for layer in layers])
    assert None not in ordered[0]
    assert all(first is second for first, second in zip(*ordered, strict=True)), "ordered once"
    torch.testing.assert_close(copy.deepcopy(frozen)(pixels), expected, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize(
    "operator",
    [None, lambda *_: torch.zeros(2, 24, 4, 4), lambda *_: torch.zeros(2, 24, 5, 5)],
    ids=["dropped", "another shape", "wrong"],
)
def test_a_convolution_that_answers_wrongly_is_not_used(operator: object, monkeypatch: pytest.MonkeyPatch) -> None:
    operators = SimpleNamespace() if operator is None else SimpleNamespace(_convolution_pointwise=operator)
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    assert not is_ordering_used.__wrapped__()


@pytest.mark.parametrize(
    "changes", [{"bias": True}, {"groups": 3}, {"dilation": 2}, {"padding": "same"}, {"padding_mode": "reflect"}]
)
def test_convolutions_of_another_kind_are_not_frozen(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only for convolutions without bias"):
        FrozenConvolution(nn.Conv2d(3, 6, 3, **{"bias": False} | changes))
