"""Crop and resize to the pixel, and every way in which a camera can go wrong: each noticed within its limit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from actor.camera_rig import FROZEN_MOTION_M, CameraRig, crop_and_resize
from actor.config import CameraConfig, CamerasConfig
from policy.errors import ConfigError
from robot.errors import CameraStaleError, RobotError
from robot.interface import CameraFrame

Image = NDArray[np.uint8]
STILL = np.zeros(3)


class ScriptedCamera:
    """Delivers whatever the test put into `frame`."""

    def __init__(self, width: int = 48, height: int = 32) -> None:
        self.width, self.height = width, height
        self.frame = CameraFrame(image=noise(height, width, seed=0), sequence=1, received_monotonic_s=0.0)
        self.reads = 0

    def connect(self) -> None: ...

    def read(self) -> CameraFrame:
        self.reads += 1
        return self.frame

    def close(self) -> None: ...

    def deliver(self, now_s: float, image: Image | None = None, **changes: Any) -> None:
        """Put in a new frame that arrived at now_s; by default with an image never seen before."""
        sequence = self.frame.sequence + 1
        new = noise(self.height, self.width, seed=sequence) if image is None else image
        self.frame = replace(
            CameraFrame(image=new, sequence=sequence, received_monotonic_s=now_s), **changes
        )  # fmt: skip


def noise(height: int, width: int, seed: int) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Rig:
    """A rig of one scripted camera under a clock of the test's own."""

    def __init__(self, **config: Any) -> None:
        self.now_s = 0.0
        self.camera = ScriptedCamera()
        self.rig = CameraRig(
            {"wrist": self.camera}, CamerasConfig(image_size_px=16, **config), clock=lambda: self.now_s
        )  # fmt: skip

    def read_at(self, now_s: float, O_p_EE: Any = STILL) -> tuple[str, ...]:
        self.now_s = now_s
        return self.rig.read(np.asarray(O_p_EE)).stale_cameras


def test_a_crop_of_the_final_size_is_copied_pixel_by_pixel() -> None:
    image = noise(376, 672, seed=1)
    out = crop_and_resize(image, (100, 50, 128, 128), 128)
    np.testing.assert_array_equal(out, image[50:178, 100:228])
    assert out.base is None  # a driver may reuse its buffer


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_whole_factor_averages_blocks(factor: int) -> None:
    image = noise(factor * 32 + 7, factor * 32 + 5, seed=factor)
    out = crop_and_resize(image, (5, 7, factor * 32, factor * 32), 32)
    means = image[7:, 5:].astype(np.float64).reshape(32, factor, 32, factor, 3).mean(axis=(1, 3))
    assert np.abs(out - means).max() <= 0.5 + 1e-9


def test_a_known_pattern_by_hand() -> None:
    """Three pixels onto two: each result covers one and a half of them."""
    image = np.zeros((3, 3, 3), np.uint8)
    image[:, 0, 0], image[:, 1, 0], image[:, 2, 0] = 30, 60, 90
    out = crop_and_resize(image, (0, 0, 3, 3), 2)
    np.testing.assert_array_equal(out[:, :, 0], [[40, 80], [40, 80]])
    assert not out[:, :, 1:].any()


def test_the_configured_region_reaches_the_policy_and_the_default_is_the_central_square() -> None:
    rig = Rig(wrist=CameraConfig(crop=(30, 10, 16, 16)))
    rig.read_at(0.0)
    np.testing.assert_array_equal(rig.rig.read(STILL).images["wrist"], rig.camera.frame.image[10:26, 30:46])
    central = Rig().rig.read(STILL).images["wrist"]
    np.testing.assert_array_equal(central, crop_and_resize(noise(32, 48, seed=0), (8, 0, 32, 32), 16))


@pytest.mark.parametrize("crop", [(40, 0, 16, 16), (0, 20, 16, 16), (0, 0, 49, 32)])
def test_a_crop_outside_the_frame_is_refused_at_start(crop: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"cameras.wrist.crop = \[.*\] reaches to .* outside .*48 x 32 px"):
        Rig(wrist=CameraConfig(crop=crop))


@pytest.mark.parametrize("crop", [(1,), (0, 0, 8), (0, 0, 0, 8), (-1, 0, 8, 8), (0, 0, 8, 8, 8)])
def test_what_is_no_region_is_refused(crop: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="x, y, width, height"):
        CameraConfig(crop=crop)


@pytest.mark.parametrize("bad", [{"stale_after_s": 0.6}, {"stale_after_s": 0.0}, {"image_size_px": 4}])
def test_limits_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        CamerasConfig(**bad)


def test_an_age_between_the_limits_is_flagged_and_counted_and_beyond_them_an_error() -> None:
    rig = Rig()
    assert rig.read_at(0.15) == ()
    assert rig.read_at(0.151) == ("wrist",)
    assert rig.read_at(0.5) == ("wrist",)
    assert rig.rig.stale_counts == {"wrist": 2}
    with pytest.raises(CameraStaleError, match=r"'wrist'.*501 ms old \(limit 500 ms\).*hold"):
        rig.read_at(0.501)
    rig.camera.deliver(0.6)  # it came back
    assert rig.read_at(0.61) == ()


def test_an_old_frame_with_a_new_stamp_is_as_old_as_ever() -> None:
    rig = Rig()
    rig.read_at(0.0)
    rig.camera.frame = replace(rig.camera.frame, received_monotonic_s=0.3)
    assert rig.read_at(0.3) == ("wrist",)
    rig.camera.frame = replace(rig.camera.frame, received_monotonic_s=0.6)
    with pytest.raises(CameraStaleError):
        rig.read_at(0.6)


def test_a_frame_that_was_old_on_arrival_is_old_whatever_its_number() -> None:
    rig = Rig()
    rig.camera.deliver(0.0)
    with pytest.raises(CameraStaleError):
        rig.read_at(0.7)


def test_an_unchanging_image_is_frozen_from_when_the_arm_moved_on() -> None:
    rig = Rig()
    same = rig.camera.frame.image

    def step(now_s: float, x: float) -> tuple[str, ...]:
        rig.camera.deliver(now_s, image=same.copy())
        return rig.read_at(now_s, [x, 0.0, 0.0])

    for tick in range(100):
        assert step(tick / 10, 0.0) == ()  # a still scene, for ten seconds
    assert step(10.0, FROZEN_MOTION_M - 1e-6) == ()
    assert step(10.1, FROZEN_MOTION_M + 1e-6) == ()  # now it must change
    assert step(10.3, 2 * FROZEN_MOTION_M) == ("wrist",)
    assert step(10.6, 0.0) == ("wrist",)  # even if the arm has come back
    with pytest.raises(CameraStaleError):
        step(10.61, 0.0)
    rig.camera.deliver(10.7)
    assert rig.read_at(10.7, [0.3, 0.0, 0.0]) == ()


def test_a_late_image_after_a_long_pause_is_no_alarm() -> None:
    """The scene stood still for long, the arm starts, and the image follows a period later."""
    rig = Rig()
    same = rig.camera.frame.image
    for tick in range(50):
        rig.camera.deliver(tick / 10, image=same.copy())
        assert rig.read_at(tick / 10) == ()
    rig.camera.deliver(5.0, image=same.copy())
    assert rig.read_at(5.0, [0.02, 0.0, 0.0]) == ()
    rig.camera.deliver(5.1)
    assert rig.read_at(5.1, [0.04, 0.0, 0.0]) == ()


@pytest.mark.parametrize(
    "image", [np.zeros((32, 47, 3), np.uint8), np.zeros((32, 48, 3)), np.zeros((32, 48), np.uint8)]
)
def test_a_frame_of_another_size_is_refused(image: Any) -> None:
    rig = Rig()
    rig.camera.deliver(0.1, image=image)
    with pytest.raises(RobotError, match=r"'wrist' delivered a frame of shape .* expected \(32, 48, 3\) uint8"):
        rig.read_at(0.1)


def test_each_camera_is_read_once_and_judged_by_itself() -> None:
    cameras = {"wrist": ScriptedCamera(64, 32), "third_person": ScriptedCamera()}
    rig = CameraRig(cameras, CamerasConfig(image_size_px=8), clock=lambda: 0.3)
    cameras["third_person"].deliver(0.3)
    reading = rig.read(STILL)
    assert reading.stale_cameras == ("wrist",)
    assert {name: image.shape for name, image in reading.images.items()} == dict.fromkeys(cameras, (8, 8, 3))
    assert [camera.reads for camera in cameras.values()] == [1, 1]
