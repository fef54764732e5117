"""The capture thread, which all real camera drivers share."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from robot.cameras.capture import CapturingCamera
from robot.errors import RobotError
from tests.camera_fakes import (
    ScriptedSource,
    read_until,
    wait_for,
)


@pytest.fixture
def source() -> ScriptedSource:
    return ScriptedSource()


@pytest.fixture
def camera(source: ScriptedSource) -> Iterator[CapturingCamera]:
    camera = CapturingCamera("wrist", source, width=64, height=48)
    yield camera
    source.is_silent = False
    camera.close()


def test_a_reader_gets_the_newest_frame_and_misses_those_between(
    source: ScriptedSource, camera: CapturingCamera
) -> None:
    camera.connect()
    before = source.grabbed
    wait_for(lambda: source.grabbed >= before + 10)
    started = source.grabbed  # the source is at work on, or has just delivered, the next one
    assert started - 1 <= camera.read().sequence <= source.grabbed


def test_reading_does_not_wait_for_a_device_that_hangs(source: ScriptedSource, camera: CapturingCamera) -> None:
    """`grab` returns no more: a reader that waited for it would never come back either."""
    camera.connect()
    source.is_silent = True
    time.sleep(0.05)
    frames = [camera.read() for _ in range(1000)]
    assert len({frame.sequence for frame in frames}) == 1
    source.is_silent = False
    read_until(camera, lambda frame: frame.sequence > frames[0].sequence)


def test_only_its_own_thread_calls_the_device_and_it_ends_with_the_camera(
    source: ScriptedSource, camera: CapturingCamera
) -> None:
    camera.connect()
    camera.close()
    assert source.threads == {"camera-wrist"}
    assert source.closed == source.opened == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "camera-wrist"]


def test_an_unplugged_camera_keeps_its_last_frame_and_goes_on_once_it_is_back(
    source: ScriptedSource, camera: CapturingCamera, caplog: pytest.LogCaptureFixture
) -> None:
    camera.connect()
    source.is_unplugged = True
    wait_for(lambda: "there is no scripted camera" in camera.fault)
    last = camera.read()
    time.sleep(0.8)  # it is tried again at least once
    assert camera.read() is last
    source.is_unplugged = False
    assert read_until(camera, lambda frame: frame.sequence > last.sequence).sequence == last.sequence + 1
    wait_for(lambda: len(caplog.messages) == 3)  # one line per change, whatever the number of tries
    assert "delivers no image" in caplog.messages[0]
    assert "there is no scripted camera" in caplog.messages[1]
    assert "images again" in caplog.messages[2]
    assert camera.fault == ""


def test_frames_of_another_size_reach_nobody(source: ScriptedSource, camera: CapturingCamera) -> None:
    camera.connect()
    source.opened_size, source.size = (64, 48), (48, 64)
    wait_for(lambda: "48 x 64 px where 64 x 48 px" in camera.fault)
    last = camera.read()
    assert last.image.shape == (48, 64, 3)
    source.size = (64, 48)
    assert read_until(camera, lambda frame: frame.sequence > last.sequence).image.shape == (48, 64, 3)


def test_an_unexpected_exception_does_not_end_the_thread(source: ScriptedSource, camera: CapturingCamera) -> None:
    camera.connect()
    source.error = ZeroDivisionError("inside the SDK")
    wait_for(lambda: source.opened == 2)
    sequence = camera.read().sequence
    read_until(camera, lambda frame: frame.sequence > sequence)


def test_identical_images_are_counted_and_the_device_is_opened_again(source: ScriptedSource) -> None:
    camera = CapturingCamera("wrist", source, width=64, height=48, frozen_after_s=0.3)
    camera.connect()
    source.is_frozen = True
    wait_for(lambda: camera.identical_frames >= 10)
    wait_for(lambda: source.opened == 2)
    wait_for(lambda: camera.identical_frames == 0 and camera.fault == "")
    camera.close()


@pytest.mark.parametrize(("attribute", "value", "message"), [
    ("is_unplugged", True, "camera 'wrist': there is no scripted camera. Plug it in again"),
    ("opened_size", (32, 32), "32 x 32 px where 64 x 48 px were asked for"),
])  # fmt: skip
def test_connecting_fails_at_once_with_the_remedy(
    source: ScriptedSource, camera: CapturingCamera, attribute: str, value: Any, message: str
) -> None:
    setattr(source, attribute, value)
    with pytest.raises(RobotError, match=message):
        camera.connect()
    with pytest.raises(RobotError, match="not connected"):
        camera.read()


def test_connecting_to_a_silent_device_ends_in_time(source: ScriptedSource) -> None:
    source.is_silent = True
    camera = CapturingCamera("wrist", source, width=64, height=48, connect_timeout_s=0.2)
    threading.Timer(1.0, setattr, (source, "is_silent", False)).start()  # close() has to wait for the driver
    with pytest.raises(RobotError, match="no image within 0 s"):
        camera.connect()
