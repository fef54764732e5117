"""Weights: to bytes and back, on disk, and into a module whole or not at all."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from policy.errors import WeightsError
from policy.weights import deserialise, load_strict, serialise
from policy.weights_store import TensorInfo, WeightsStore, sha256


def make_module(seed: int = 0, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 2))


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_weights_survive_serialisation_and_strict_load() -> None:
    source, target = make_module(seed=1), make_module(seed=2)
    data = serialise(source.state_dict())
    load_strict(target, deserialise(data, sha256(data)))
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_a_prefix_selects_one_module_among_several() -> None:
    source, target = make_module(seed=1), make_module(seed=2)
    tensors = {f"critic.{name}": tensor for name, tensor in source.state_dict().items()} | {"other.x": torch.ones(1)}
    load_strict(target, tensors, "critic.")
    assert torch.equal(target.state_dict()["0.weight"], source.state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("0.bias"), "0.bias is missing"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra is not part of this policy"),
        (lambda tensors: tensors.update({"2.weight": torch.zeros(2, 5)}), r"2.weight is float32 \[2, 5\].*\[2, 4\]"),
        (lambda tensors: tensors.update({"2.bias": torch.zeros(2).double()}), "2.bias is float64"),
        (lambda tensors: tensors["1.bias"].fill_(math.nan), "1.bias holds non-finite values"),
        (lambda tensors: tensors["1.bias"].fill_(math.inf), "1.bias holds non-finite values"),
    ],
)
def test_weights_that_do_not_fit_leave_the_module_as_it_was(change: object, message: str) -> None:
    module = make_module(seed=2)
    before, tensors = copy_of(module), copy_of(make_module(seed=1))
    assert callable(change)
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        load_strict(module, tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_another_architecture_is_told_by_its_first_five_tensors() -> None:
    with pytest.raises(WeightsError) as refusal:
        load_strict(make_module(), {f"layer{index}": torch.zeros(1) for index in range(3)})
    assert str(refusal.value).count(" is missing") == 5
    assert "and 4 more" in str(refusal.value)


def test_names_of_tensors_are_told_in_a_bounded_and_printable_text() -> None:
    name = "\x1b[2J" + "n" * 1_000_000
    for refuse in (
        lambda: load_strict(make_module(), {name: torch.zeros(1)}),
        lambda: deserialise(data := save({name: torch.tensor(math.nan)}), sha256(data)),
    ):
        with pytest.raises(WeightsError) as refusal:
            refuse()
        assert str(refusal.value).isprintable()
        assert len(str(refusal.value)) < 5000


def test_a_flipped_bit_is_refused() -> None:
    data = bytearray(serialise(make_module().state_dict()))
    digest = sha256(bytes(data))
    data[-1] ^= 1
    with pytest.raises(WeightsError, match="corrupt"):
        deserialise(bytes(data), digest)


@pytest.mark.parametrize("data", [b"", b"nothing of the kind", save({"x": torch.zeros(9)})[:-1]])
def test_what_is_no_weights_file_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a safetensors file"):
        deserialise(data, sha256(data))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        WeightsStore(tmp_path).publish(data, version=1, learner_step=0)
    assert WeightsStore(tmp_path).latest() is None


def test_more_tensors_than_a_policy_has_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{n}": empty for n in range(50_000)}).encode()
    data = len(header).to_bytes(8, "little") + header
    monkeypatch.setattr("policy.weights.load", lambda data: pytest.fail("was read"))
    monkeypatch.setattr("safetensors.deserialize", lambda data: pytest.fail("was read"))
    with pytest.raises(WeightsError, match=f"its header would have {len(header)} bytes, above the limit"):
        deserialise(data, sha256(data))
    with pytest.raises(WeightsError, match="above the limit"):
        WeightsStore(tmp_path).publish(data, version=1, learner_step=0)


def test_non_finite_weights_are_refused() -> None:
    data = serialise({"a": torch.ones(2), "b": torch.tensor([math.nan])})
    with pytest.raises(WeightsError, match="b holds non-finite"):
        deserialise(data, sha256(data))


def test_the_store_gives_the_newest_version_with_its_manifest(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path / "weights")
    assert store.latest() is None
    for version in (1, 2):
        store.publish(serialise({"b": torch.full((2, 3), version), "a": torch.ones(1)}), version, 50 * version)
    newest = WeightsStore(tmp_path / "weights").latest()
    assert newest is not None
    assert (newest.version, newest.learner_step) == (2, 100)
    assert newest.tensors == (TensorInfo("a", "F32", (1,)), TensorInfo("b", "I64", (2, 3)))
    data = store.read(newest)
    assert (len(data), sha256(data)) == (newest.num_bytes, newest.sha256)


def test_the_store_keeps_three_files_and_always_the_newest(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path)
    for version in (5, 6, 7, 8, 1):  # 1: a learner that began a new run
        store.publish(serialise({"a": torch.ones(1)}), version, learner_step=0)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "00000001.safetensors",
        "00000007.safetensors",
        "00000008.safetensors",
    ]
    newest = store.latest()
    assert newest is not None
    assert store.read(newest)


def test_a_clock_that_was_set_back_costs_no_version_that_was_just_published(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path)
    for version in range(1, 4):
        manifest = store.publish(serialise(make_module().state_dict()), version, 0)
        os.utime(tmp_path / manifest.file, (4e9, 4e9))  # written while the clock was ahead
    data = serialise(make_module(seed=1).state_dict())
    store.publish(data, 4, 0)
    newest = store.latest()
    assert newest is not None
    assert store.read(newest) == data


def test_an_unreadable_manifest_and_a_missing_file_are_errors_of_their_own(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path)
    manifest = store.publish(serialise({"a": torch.ones(1)}), version=1, learner_step=0)
    (tmp_path / manifest.file).unlink()
    with pytest.raises(WeightsError, match="version 1 cannot be read"):
        store.read(manifest)
    (tmp_path / "latest.json").write_text('{"version": 1}')
    with pytest.raises(WeightsError, match=r"latest\.json cannot be read"):
        store.latest()


@pytest.mark.parametrize("module", ["learner.ingest", "policy.weights_store", "policy.episode_log"])
def test_what_ingest_needs_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
