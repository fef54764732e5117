"""Bytes that were recorded once are read by today's code, and say what they said then."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet

from policy.image_codec import CodedImage
from policy.spec import Observation, Specs
from policy.transition import Recordable, Transition
from policy.wire import decode_body, encode_body
from tests.golden.expected import BODIES, IMAGE_SPECS, OLD_BODIES, SPECS
from tests.golden.record import FOLDER, MESSAGES, as_dict, fields_without_bytes, parse
from tests.transitions import assert_equal

JPEG_TOLERANCE = 4  # of 255, for the smooth images of these bodies
RECORD_THEM = "run `python -m tests.golden.record` and commit what it adds"
MESSAGE_FILES = sorted((FOLDER / "messages").glob("*.bin"))
EXPECTED = BODIES | OLD_BODIES


@pytest.mark.parametrize("path", MESSAGE_FILES, ids=lambda path: path.stem)
def test_recorded_messages_say_what_they_said(path: Path) -> None:
    data = path.read_bytes()
    message = parse(path.name.partition(".")[0], data)
    assert as_dict(message) == json.loads(path.with_suffix(".json").read_text())
    assert message.SerializeToString(deterministic=True) == data
    assert not len(UnknownFieldSet(message))


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_is_in_recorded_bytes(name: str) -> None:
    assert fields_without_bytes(name) == set(), RECORD_THEM


def test_there_are_bytes_of_every_body_and_none_besides() -> None:
    assert {path.stem for path in (FOLDER / "bodies").glob("*.bin")} == EXPECTED.keys(), RECORD_THEM


@pytest.mark.parametrize("name", EXPECTED)
def test_recorded_bodies_decode_to_what_was_meant(name: str) -> None:
    data = (FOLDER / "bodies" / f"{name}.bin").read_bytes()
    expected = EXPECTED[name]
    decoded = decode_body(data, specs_of(expected))
    assert_same(decoded, expected)
    assert_same(decode_body(encode_body(decoded), specs_of(expected)), decoded)


def specs_of(body: Recordable) -> Specs:
    has_images = isinstance(body, Transition) and "raw_view" in body.observation
    return IMAGE_SPECS if has_images else SPECS


def assert_same(decoded: Recordable, expected: Recordable) -> None:
    if not isinstance(expected, Transition):
        assert decoded == expected
        return
    assert isinstance(decoded, Transition)
    without_images: dict[str, Any] = {"observation": {}, "final_observation": None}
    assert_equal(Transition(**vars(decoded) | without_images), Transition(**vars(expected) | without_images))
    assert_same_observation(decoded.observation, expected.observation)
    assert (decoded.final_observation is None) == (expected.final_observation is None)
    if decoded.final_observation is not None and expected.final_observation is not None:
        assert_same_observation(decoded.final_observation, expected.final_observation)


def assert_same_observation(decoded: Observation, expected: Observation) -> None:
    assert list(decoded) == list(expected)
    for name, value in expected.items():
        if not isinstance(value, CodedImage):
            np.testing.assert_array_equal(decoded[name], value)
            assert decoded[name].dtype == np.float32
            continue
        coded = decoded[name]
        assert isinstance(coded, CodedImage)
        assert coded.codec == value.codec
        difference = np.abs(coded.pixels.astype(int) - value.pixels.astype(int)).max()
        assert difference <= (JPEG_TOLERANCE if coded.codec == "jpeg" else 0), name
