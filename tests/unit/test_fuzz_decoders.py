"""Whatever else is read from outside: greetings, weights, pickles, databases. A value, or the error that says so.

tests/unit/test_fuzz_wire.py has the records.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from learner.handshake import Handshake
from policy.array_pickle import read_arrays
from policy.config import PolicyConfig
from policy.errors import SpecMismatchError, WeightsError, WireError
from policy.grpc_options import PROTOCOL_VERSION
from policy.spec import Specs
from policy.weights import deserialise, serialise
from policy.weights_store import WeightsStore, sha256, tensor_infos
from tests.golden.expected import IMAGE_SPECS, SPECS
from tests.mutations import FUZZ, mutated

MAX_MESSAGE_CHARACTERS = 4000  # gRPC sends 8 KiB of trailers at most
DEEP = "[" * 100_000

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def altered_json(draw: st.DrawFn, original: Any) -> str:
    """Draw the text of a JSON tree in which one value is another, one key is missing or one is new."""
    tree = json.loads(json.dumps(original))
    node, path = tree, draw(st.lists(st.integers(0, 20), min_size=1, max_size=6))
    for index in path:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = keys[index % len(keys)]
        if isinstance(node[key], dict | list) and draw(st.integers(0, 4)):
            node = node[key]
            continue
        if draw(st.booleans()):
            node[key] = draw(json_values)
        else:
            del node[key]
        break
    return json.dumps(tree)


SPECS_TREE = json.loads(IMAGE_SPECS.to_json())
POLICY_TREE = json.loads(PolicyConfig().to_json())


@FUZZ
@given(text=st.text(max_size=200) | altered_json(SPECS_TREE) | json_values.map(json.dumps))
@example(text=DEEP)
@example(text='{"observation": ' * 20_000)
@example(text=json.dumps(SPECS_TREE).replace("9", "9" * 5000))
@example(text=json.dumps(SPECS_TREE | {"action": {"fields": [], "gripper": "discrete"}}))
@example(text=json.dumps(SPECS_TREE).replace("0.08", "1e400"))
@example(text=json.dumps(SPECS_TREE).replace('"q"', json.dumps("q" * 1_000_000)))
def test_specs(text: str) -> None:
    try:
        specs = Specs.from_json(text)
    except WireError as refusal:
        assert len(str(refusal)) <= MAX_MESSAGE_CHARACTERS  # noqa: PT017 - either way is right
    else:
        assert Specs.from_json(specs.to_json()) == specs
        specs.digest()
        assert specs.observation.vector_dim >= 0
        assert specs.action.continuous_dim >= 0


@FUZZ
@given(
    specs=st.just(SPECS.to_json()) | altered_json(json.loads(SPECS.to_json())),
    policy=st.text(max_size=50) | altered_json(POLICY_TREE) | json_values.map(json.dumps),
)
@example(specs=SPECS.to_json(), policy=DEEP)
@example(specs=SPECS.to_json(), policy=json.dumps(POLICY_TREE | {"encoder": "n" * 1_000_000}))
@example(specs=SPECS.to_json(), policy=json.dumps(POLICY_TREE | {"k" * 1_000_000: 1}))
@example(specs=DEEP, policy=json.dumps(POLICY_TREE))
def test_greetings(specs: str, policy: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "specs.json"
        path.write_text(SPECS.to_json())
        handshake = Handshake(path, POLICY_TREE)
        try:
            handshake.check(PROTOCOL_VERSION, specs, policy)
        except (SpecMismatchError, WireError) as refusal:
            assert len(str(refusal)) <= MAX_MESSAGE_CHARACTERS  # noqa: PT017 - either way is right
        assert handshake.specs == SPECS
        assert path.read_text() == SPECS.to_json()


def safetensors_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype: str, shape: list[int], end: int) -> dict[str, Any]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


WEIGHTS = serialise({"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(3), "steps": torch.tensor([7])})
KINDS = ["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "U64", "X"]
FILES = [
    b"",
    bytes(8),
    b"\xff" * 16,
    safetensors_file(b"[" * 100_000),
    safetensors_file({"t": {}}),
    safetensors_file(tensor("F32", [1 << 40, 1 << 40], 4), bytes(4)),
    safetensors_file(tensor("F32", [0, 1 << 62], 0)),
    safetensors_file(tensor("F32", [], 4), bytes(4)),
    safetensors_file(tensor("F32", [1] * 100, 4), bytes(4)),
    safetensors_file({"t\ud800": 1}),
    safetensors_file(b'{"\xff": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
    *(safetensors_file(tensor(kind, [16], size), bytes(size)) for kind in KINDS for size in (8, 12, 16, 32, 64, 128)),
]


@FUZZ
@given(data=st.binary(max_size=200) | mutated([WEIGHTS]) | st.sampled_from(FILES))
def test_weights(data: bytes) -> None:
    """The right hash: whoever sends bad weights has computed it over them."""
    for decode in (lambda: deserialise(data, sha256(data)), lambda: tensor_infos(data)):
        try:
            decode()
        except WeightsError as refusal:
            assert len(str(refusal)) <= MAX_MESSAGE_CHARACTERS  # noqa: PT017 - either way is right


@pytest.mark.parametrize("data", FILES, ids=range(len(FILES)))
def test_files_that_are_no_weights(data: bytes) -> None:
    test_weights.hypothesis.inner_test(data)  # type: ignore[attr-defined]


def test_weights_under_another_hash_are_not_even_parsed() -> None:
    with pytest.raises(WeightsError, match="corrupt"):
        deserialise(WEIGHTS, sha256(WEIGHTS + b"\0"))


@pytest.fixture(scope="module")
def manifest_tree(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("weights")
    WeightsStore(folder).publish(WEIGHTS, version=3, learner_step=7)
    return json.loads((folder / "latest.json").read_text())


@FUZZ
@given(data=st.data())
def test_manifests(manifest_tree: Any, data: st.DataObject) -> None:
    text = data.draw(
        altered_json(manifest_tree).map(str.encode)
        | mutated([json.dumps(manifest_tree).encode()])
        | st.just(DEEP.encode())
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "latest.json").write_bytes(text)
        store = WeightsStore(Path(folder))
        try:
            manifest = store.latest()
            assert manifest is not None
            store.read(manifest)
        except WeightsError:
            pass


@pytest.fixture(scope="module")
def pickles() -> list[bytes]:
    program = (
        "import pickle, sys, numpy as np; tree = {'a': {'b': np.ones((2, 3), 'f4')}, 'c': np.zeros(2, 'f8')};"
        "sys.stdout.buffer.write(pickle.dumps(tree, int(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program]
    return [subprocess.run([*command, protocol], capture_output=True, check=True).stdout for protocol in "34"]


@FUZZ
@given(data=st.data())
def test_pickles(pickles: list[bytes], data: st.DataObject) -> None:
    content = data.draw(mutated(pickles) | st.binary(max_size=100))
    try:
        arrays = read_arrays(content)
    except WeightsError:
        return
    assert isinstance(arrays, dict)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04" + b"(" * 1_000_000 + b"t" * 1_000_000 + b".",
        b"\x80\x04}" + b"\x8c\x01a}" * 100_000 + b"s" * 100_000 + b".",
        b"\x80\x04\x8e" + b"\xff" * 8,
        b"\x80\x04\x8a\xff" + b"\xff" * 255 + b".",
    ],
    ids=["nested tuples", "nested dicts", "long bytes that are not there", "long integer"],
)
def test_hostile_pickles(content: bytes) -> None:
    with pytest.raises(WeightsError):
        read_arrays(content)
