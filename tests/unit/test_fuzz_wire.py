"""Whatever bytes come as a record: a valid one, or WireError in few words; never another error, never much memory."""

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from cgpo_proto import link_pb2
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import WireError
from policy.image_codec import CODECS, ImageCodec, decode_image, encode_image
from policy.spec import Specs
from policy.transition import RecordId
from policy.wire import decode_body, encode_body, make_record, record_crc32, record_id_of
from tests.golden.expected import BODIES, IMAGE_SPECS, OLD_BODIES, SPECS
from tests.mutations import FUZZ, disturbed, mutated

MAX_MESSAGE_CHARACTERS = 2000  # what a log line, a quarantine's row and gRPC's trailers take
MAX_GROWTH_BYTES = 64 << 20
LAST_STEP = encode_body(BODIES["last_step_with_images"])
VALID = [encode_body(body) for body in (BODIES | OLD_BODIES).values()]
VALID.remove(LAST_STEP)
MESSAGES = [
    *((link_pb2.Body.FromString(data), SPECS) for data in VALID),
    (link_pb2.Body.FromString(LAST_STEP), IMAGE_SPECS),
]


def refusal_of(call: Callable[[], object]) -> WireError | None:
    """Return how the call refused what it was given, None if it took it; anything but a short WireError fails."""
    try:
        call()
    except WireError as refusal:
        assert len(str(refusal)) <= MAX_MESSAGE_CHARACTERS, len(str(refusal))  # noqa: PT017 - either way is right here
        return refusal
    return None


def check_decoding(data: bytes, specs: Specs) -> None:
    """Decode; what is accepted must survive the way back to bytes."""
    if refusal_of(lambda: decode_body(data, specs)) is None:
        body = decode_body(data, specs)
        assert encode_body(decode_body(encode_body(body), specs)) == encode_body(body)


@FUZZ
@given(data=st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    check_decoding(data, SPECS)


@FUZZ
@given(data=mutated(VALID))
def test_mutated_bodies(data: bytes) -> None:
    check_decoding(data, SPECS)


@FUZZ
@given(data=mutated([LAST_STEP]))
def test_mutated_bodies_with_images(data: bytes) -> None:
    check_decoding(data, IMAGE_SPECS)


@FUZZ
@given(data=st.data())
def test_bodies_with_fields_that_hold_something_else(data: st.DataObject) -> None:
    message, specs = data.draw(st.sampled_from(MESSAGES))
    check_decoding(data.draw(disturbed(message)).SerializeToString(), specs)


@FUZZ
@given(data=st.data())
def test_records_under_bad_names(data: st.DataObject) -> None:
    body = VALID[0]
    record_id = RecordId("robot", "a", 3)
    original = make_record(record_id, body, record_crc32(record_id, body))
    record = data.draw(disturbed(original))
    if data.draw(st.booleans()):  # whoever means harm computes the checksum too
        name = RecordId(record.actor_id, record.incarnation, record.sequence)
        record.crc32 = record_crc32(name, record.body)
    received = link_pb2.Record.FromString(record.SerializeToString())
    if refusal_of(lambda: record_id_of(received)) is None:
        assert record_id_of(received) == RecordId(record.actor_id, record.incarnation, record.sequence)
        assert 0 < len(record.actor_id) <= 128


@FUZZ
@given(data=mutated([make_record(RecordId("robot", "a", 3), b"body", 0).SerializeToString()]))
def test_mutated_records(data: bytes) -> None:
    try:
        record = link_pb2.Record.FromString(data)
    except DecodeError:
        return  # gRPC refuses it before any of our code
    with pytest.raises(WireError):  # their checksum is wrong
        record_id_of(record)


PICTURE = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
CODED = {codec: encode_image(PICTURE, codec).data for codec in CODECS}


@pytest.mark.parametrize("codec", CODECS)
@FUZZ
@given(data=st.data())
def test_mutated_images(codec: ImageCodec, data: st.DataObject) -> None:
    """The decoders for damaged images are C code: they must give an image of the right size, or none."""
    changed = data.draw(mutated([CODED[codec]]))
    if refusal_of(lambda: decode_image(changed, codec, 8, 9)) is None:
        pixels = decode_image(changed, codec, 8, 9).pixels
        assert pixels.shape == (8, 9, 3)
        assert pixels.dtype == np.uint8


def test_small_messages_that_want_to_become_large() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.bombs"], capture_output=True, text=True, timeout=200, check=True
    )
    results = json.loads(finished.stdout)
    assert len(results) > 20
    for name, result in results.items():
        assert result["grown_bytes"] < MAX_GROWTH_BYTES, (name, result)
        assert result["error"] in ("", "WireError"), (name, result)
        assert result["characters"] <= MAX_MESSAGE_CHARACTERS, (name, result)
    assert [name for name, result in results.items() if not result["error"]] == ["png: pixels go on and on"]
