"""Stand-ins for cameras that several files use."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.camera_fakes import (
    SERIAL,
    RealSenseDesk,
    ZedSdk,
    keeping_pipeline,
    record_realsense,
)


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        import pyrealsense2  # noqa: F401
    except ImportError as error:
        pytest.skip(f"librealsense does not load here ({error}): sudo apt-get install libusb-1.0-0")
    path = tmp_path_factory.mktemp("realsense") / "colour.db3"  # no other ending is taken
    record_realsense(path, SERIAL, 64, 48)
    return path


@pytest.fixture
def desk(recording: Path, monkeypatch: pytest.MonkeyPatch) -> RealSenseDesk:
    monkeypatch.setattr("robot.cameras.realsense.rs.pipeline", keeping_pipeline())
    return RealSenseDesk(recording)


@pytest.fixture
def zed_sdk(monkeypatch: pytest.MonkeyPatch) -> ZedSdk:
    sdk = ZedSdk()
    package: Any = ModuleType("pyzed")
    package.__path__ = []
    package.sl = sdk.module()
    monkeypatch.setitem(sys.modules, "pyzed", package)
    monkeypatch.setitem(sys.modules, "pyzed.sl", package.sl)
    return sdk
