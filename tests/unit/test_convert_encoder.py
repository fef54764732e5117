"""Both published forms of the encoder become one file; a pickle that is more than arrays runs nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from policy.array_pickle import read_arrays
from policy.convert_encoder import convert, main
from policy.encoder_weights import DIRECTORY_VARIABLE, load_backbone
from policy.errors import WeightsError
from policy.resnet import ResNet10
from policy.weights_store import sha256

# Another process writes what a pickle of JAX arrays looks like: JAX hands pickle the parts of a NumPy array.
WRITER = """
import pickle, sys, types
import numpy as np
module = types.ModuleType("jax._src.array")
def _reconstruct_array(fun, args, arr_state, aval_state): ...
_reconstruct_array.__module__ = module.__name__
module._reconstruct_array = _reconstruct_array
sys.modules.update({"jax": types.ModuleType("jax"), "jax._src": types.ModuleType("jax._src"), module.__name__: module})
class JaxArray:
    def __init__(self, value): self.value = value
    def __reduce__(self):
        return _reconstruct_array, (*self.value.__reduce__(), {"weak_type": False, "named_shape": {}})
def tree(archive, wrap):
    result = {}
    for path in archive.files:
        *parents, leaf = path.split("/")
        folder = result
        for parent in parents: folder = folder.setdefault(parent, {})
        folder[leaf] = wrap(archive[path])
    return result
wrap = JaxArray if sys.argv[3] == "jax" else lambda value: value
sys.stdout.buffer.write(pickle.dumps(tree(np.load(sys.argv[1]), wrap), protocol=int(sys.argv[2])))
"""


def published(backbone: ResNet10) -> dict[str, np.ndarray]:
    """The network under HIL-SERL's names, with kernels in Flax's order and ImageNet's head."""
    arrays = {"output_head/kernel": np.zeros((512, 10), np.float32)}
    for name, tensor in backbone.state_dict().items():
        *parents, leaf = name.split(".")
        if parents[0] == "blocks":
            layers = {"conv1": "Conv_0", "conv2": "Conv_1", "norm1": "MyGroupNorm_0", "norm2": "MyGroupNorm_1"}
            layers |= {"projection": "conv_proj", "projection_norm": "norm_proj"}
            path = [f"ResNetBlock_{parents[1]}", layers[parents[2]]]
        else:
            path = [{"stem": "conv_init", "stem_norm": "norm_init"}[parents[0]]]
        if tensor.ndim == 4:
            arrays["/".join([*path, "kernel"])] = np.ascontiguousarray(tensor.numpy().transpose(2, 3, 1, 0))
        else:
            arrays["/".join([*path, {"weight": "scale", "bias": "bias"}[leaf]])] = tensor.numpy()
    return arrays


def pickled(arrays: dict[str, np.ndarray], folder: Path, protocol: int = 4, kind: str = "jax") -> bytes:
    np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
    command = [sys.executable, "-c", WRITER, str(folder / "arrays.npz"), str(protocol), kind]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def lerobot(backbone: ResNet10) -> bytes:
    names = {"stem.": "embedder.0.", "stem_norm.": "embedder.1.group_norm.", "blocks.": "encoder.stages."}
    inner = {"projection.": "shortcut.0.conv.", "projection_norm.": "shortcut.1.group_norm."}
    inner |= {
        f"{layer}{n}.": f"{layer}{n}.{wrap}."
        for layer, wrap in (("conv", "conv"), ("norm", "group_norm"))
        for n in "12"
    }
    tensors = {}
    for name, tensor in backbone.state_dict().items():
        for ours, theirs in (names | inner).items():
            if name.startswith(ours) or f".{ours}" in name:
                name = name.replace(ours, theirs)
        tensors[name] = tensor.contiguous()
    return save(tensors)


@pytest.fixture(scope="module")
def backbone() -> ResNet10:
    drawn = load_backbone("random")
    with torch.no_grad():
        for number, parameter in enumerate(drawn.parameters()):
            parameter.add_(number / 100)  # no two tensors alike
    return drawn


def test_both_sources_give_the_same_file_with_the_published_values(backbone: ResNet10, tmp_path: Path) -> None:
    ours = convert(pickled(published(backbone), tmp_path))
    assert sha256(convert(lerobot(backbone))) == sha256(ours)
    for name, tensor in load(ours).items():
        torch.testing.assert_close(tensor, backbone.state_dict()[name].contiguous(), rtol=0, atol=0)


def test_the_command_writes_the_file_that_its_last_line_names(
    backbone: ResNet10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(lerobot(backbone))
    monkeypatch.setattr(sys, "argv", ["convert_encoder", str(source), "--out", str(tmp_path / "encoders")])
    assert main() == 0
    digest = capsys.readouterr().out.split('encoder_weights = "')[1][:64]
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "encoders"))
    name = "blocks.3.conv2.weight"
    torch.testing.assert_close(load_backbone(digest).state_dict()[name], backbone.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_arrays_come_out_as_they_went_in(protocol: int, kind: str, tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "a/b": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "a/fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">f4"),
        "scalar": np.array(3, np.float32),
    }
    tree = read_arrays(pickled(arrays, tmp_path, protocol, kind))
    flat = {"a/b": tree["a"]["b"], "a/fortran": tree["a"]["fortran"]} | {key: tree[key] for key in tree if key != "a"}
    assert flat.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(flat[name], array)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x04cos\nsystem\n(X\x0b\x00\x00\x00touch owned\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0btouch owned\x85R.",
        b"\x80\x03cbuiltins\neval\n(X\x18\x00\x00\x00open('owned','w').close()tR.",
        b"\x80\x03cnumpy\nload\nX\x05\x00\x00\x00owned\x85R.",
        b"(S'touch owned'\nios\nsystem\n.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x04\x82\x01.",  # an entry of the extension registry
        b"\x80\x04X\x01\x00\x00\x00aQ.",  # a persistent id
        b"\x80\x04cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R}X\x01\x00\x00\x00aK\x01sb.",
    ],
    ids=["os.system", "stack global", "eval", "numpy.load", "inst", "newobj", "extension", "persistent", "state"],
)
def test_a_pickle_with_anything_else_is_refused_and_runs_nothing(
    program: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError):
        read_arrays(program)
    assert not (tmp_path / "owned").exists()


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="expected floats"):
        read_arrays(pickled({"a": np.arange(3)}, tmp_path))


@pytest.mark.parametrize("cut", [10, 100, -1])
def test_a_damaged_pickle_is_refused(cut: int, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a whole pickled dict"):
        read_arrays(pickled({"a": np.ones(50, np.float32)}, tmp_path)[:cut])


def test_another_network_is_refused_by_name(backbone: ResNet10, tmp_path: Path) -> None:
    arrays = published(backbone)
    del arrays["ResNetBlock_2/conv_proj/kernel"]
    with pytest.raises(WeightsError, match=r"blocks\.2\.projection\.weight is missing"):
        convert(pickled(arrays, tmp_path))


def test_what_is_neither_form_is_refused() -> None:
    with pytest.raises(WeightsError, match="neither a pickle nor a safetensors file"):
        convert(b"<html>not found</html>")
