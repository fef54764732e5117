"""Measure what cameras cost: the capture thread of each kind, and what the control loop does with two images.

python -m benchmarks.cameras    # prints Markdown tables; takes half a minute

Images are noise, which no comparison of neighbours can shortcut, and come at 30 a second from memory: what a USB
driver or an SDK does before it hands an image over is not in the figures.
"""

import os
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from actor.camera_rig import CameraRig, crop_and_resize
from actor.config import CamerasConfig
from robot.cameras.capture import CapturingCamera, Image
from robot.interface import CameraFrame

FPS = 30
SECONDS = 4.0
IMAGE_PX = 128  # a side, as the policy sees it
KINDS = {  # driver and image received -> width and height of what it returns, columns and channels received
    "realsense, opencv 640 x 480": ((640, 480), 640, 3),
    "zed_uvc 1344 x 376, both eyes": ((672, 376), 1344, 3),
    "zed_uvc 2560 x 720, both eyes": ((1280, 720), 2560, 3),
    "zed_sdk 672 x 376 BGRA": ((672, 376), 672, 4),
    "zed_sdk 1280 x 720 BGRA": ((1280, 720), 1280, 4),
}


class NoiseSource:
    """Delivers one of four images of noise, converted as a driver converts what it receives."""

    def __init__(self, size: tuple[int, int], columns: int, channels: int) -> None:
        self._size = size
        rng = np.random.default_rng(0)
        self._received = [rng.integers(0, 256, (size[1], columns, channels), dtype=np.uint8) for _ in range(4)]
        self._conversion = cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGB
        self._count = 0
        self._next_s = time.monotonic()

    def open(self) -> tuple[int, int]:
        return self._size

    def grab(self) -> Image:
        self._next_s += 1.0 / FPS
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        self._count += 1
        received = self._received[self._count % len(self._received)]
        return np.asarray(cv2.cvtColor(received[:, : self._size[0]], self._conversion), np.uint8)

    def close(self) -> None: ...


class StillCamera:
    """A camera that is always at its next image."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.height, self.width = image.shape[:2]
        self._image, self._sequence = image, 0

    def connect(self) -> None: ...

    def read(self) -> CameraFrame:
        self._sequence += 1
        return CameraFrame(image=self._image, sequence=self._sequence, received_monotonic_s=time.monotonic())

    def close(self) -> None: ...


def main() -> None:
    cv2.setNumThreads(1)
    print(f"OpenCV {cv2.__version__}, numpy {np.__version__}, {os.cpu_count()} CPU cores; processor times\n")
    print("| capture thread | ms an image | of one core at 30 a second |\n| --- | --- | --- |")
    for name, (size, columns, channels) in KINDS.items():
        cost_s = capture_cost_s(size, columns, channels)
        print(f"| {name} | {cost_s * 1e3:.2f} | {cost_s * FPS:.1%} |")
    print("\n| control loop | ms |\n| --- | --- |")
    rng = np.random.default_rng(0)
    images = {size: rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for size, _, _ in KINDS.values()}
    for (width, height), image in images.items():
        crop = ((width - height) // 2, 0, height, height)
        cost_s = median_cpu_s(partial(crop_and_resize, image, crop, IMAGE_PX))
        print(f"| crop {height} x {height} of {width} x {height}, to {IMAGE_PX} px | {cost_s * 1e3:.2f} |")
    cameras = {"wrist": StillCamera(images[672, 376]), "third_person": StillCamera(images[640, 480])}
    rig, position = CameraRig(cameras, CamerasConfig(image_size_px=IMAGE_PX)), np.zeros(3)
    print(f"| both cameras judged, cropped and resized | {median_cpu_s(lambda: rig.read(position)) * 1e3:.2f} |")
    camera = CapturingCamera("wrist", NoiseSource((672, 376), 672, 3), width=672, height=376)
    camera.connect()
    print(f"| `read` of the newest frame | {median_cpu_s(camera.read) * 1e3:.4f} |")
    camera.close()


def capture_cost_s(size: tuple[int, int], columns: int, channels: int) -> float:
    """Return the processor time that this process spends on one image while nobody reads."""
    camera = CapturingCamera("wrist", NoiseSource(size, columns, channels), width=size[0], height=size[1])
    camera.connect()
    first, started_s = camera.read().sequence, time.process_time()
    time.sleep(SECONDS)
    cost_s = time.process_time() - started_s
    images = camera.read().sequence - first
    camera.close()
    return cost_s / images


def median_cpu_s(call: Callable[[], object]) -> float:
    times_s = []
    for _ in range(200):
        started_s = time.thread_time()
        call()
        times_s.append(time.thread_time() - started_s)
    return float(np.median(times_s))


if __name__ == "__main__":
    main()
