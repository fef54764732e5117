"""The doctor's checks of a machine, each on one that is in order and on one that is not."""

import os
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actor.address import parse_address
from actor.doctor import learner as doctor_learner
from actor.doctor import system as doctor_system
from actor.doctor.check import Status
from actor.doctor.learner import check_log, check_port, check_torch
from actor.doctor.ports import is_port_free, port_holder
from policy.database import open_database
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError
from policy.revision import read_revision
from policy.transition import RecordId
from tests.transitions import make_transition


@pytest.mark.parametrize(
    ("version", "expected"),
    [((3, 10, 9), Status.FAILED), ((3, 11, 0), Status.OK), ((3, 12, 1), Status.OK), ((3, 13, 0), Status.FAILED)],
)
def test_python(version: tuple[int, int, int], expected: Status) -> None:
    assert doctor_system.check_python(version).status is expected


def make_project(folder: Path, dependencies: str, pins: str) -> Path:
    (folder / "pyproject.toml").write_text(
        f'[project]\ndependencies = ["numpy"]\n[project.optional-dependencies]\nrobot = [{dependencies}]\n'
    )
    (folder / "constraints.txt").write_text(pins)
    return folder


def test_packages_are_compared_with_the_pins(tmp_path: Path) -> None:
    import numpy
    import torch

    pins = f"# comment\nnumpy=={numpy.__version__}\ntorch=={torch.__version__.split('+')[0]}\n"
    good = doctor_system.check_packages(make_project(tmp_path, '"torch"', pins), ["robot"])
    assert good.status is Status.OK, good.measured
    other = doctor_system.check_packages(make_project(tmp_path, '"torch"', pins + "protobuf==0.1\n"), ["robot"])
    assert other.status is Status.WARNING
    assert "(pinned 0.1)" in other.measured
    missing = doctor_system.check_packages(make_project(tmp_path, '"no-such-driver[x]>=1"', pins), ["robot"])
    assert missing.status is Status.FAILED
    assert "no-such-driver" in missing.measured
    assert "launch/setup.sh robot" in missing.fix


def test_this_checkout_is_compared_too() -> None:
    assert doctor_system.check_packages(doctor_system.ROOT, ["robot", "sim"]).status is not Status.SKIPPED


def install(folder: Path, name: str, *modules: str) -> None:
    (folder / name).mkdir()
    for module in ("__init__", *modules):
        (folder / name / f"{module}.py").touch()


def test_strangers_of_the_same_name_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "deoxys").mkdir()  # where Deoxys' network file may lie
    (tmp_path / "deoxys" / "network.yml").touch()
    assert doctor_system.check_namesakes().status is Status.OK
    (tmp_path / "pyzed.py").touch()  # a client of the Zed data lake
    install(tmp_path, "real", "franka_interface")
    result = doctor_system.check_namesakes()
    assert result.status is Status.FAILED
    assert "uninstall -y pyzed" in result.fix
    (tmp_path / "pyzed.py").unlink()
    install(tmp_path, "pyzed", "sl")
    os.rename(tmp_path / "deoxys", tmp_path / "notes")
    install(tmp_path, "deoxys", "unet")
    result = doctor_system.check_namesakes()
    assert "uninstall -y deoxys" in result.fix
    (tmp_path / "deoxys" / "franka_interface").mkdir()
    assert doctor_system.check_namesakes().status is Status.OK


@pytest.mark.parametrize(
    ("revision", "expected"), [("a" * 40, "ok"), ("a" * 40 + "-dirty", "warning"), ("", "warning")]
)
def test_revision(revision: str, expected: str) -> None:
    assert doctor_system.check_revision(revision).status == expected


def test_a_folder_without_git_has_no_revision(tmp_path: Path) -> None:
    assert read_revision(tmp_path) == ""


def test_governors(tmp_path: Path) -> None:
    assert doctor_system.check_governor(tmp_path).status is Status.SKIPPED
    for cpu, governor in enumerate(("performance", "powersave", "powersave")):
        folder = tmp_path / f"cpu{cpu}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
    slow = doctor_system.check_governor(tmp_path)
    assert slow.status is Status.WARNING
    assert "powersave on 2 of 3 cores" in slow.measured
    assert "performance" in slow.fix
    for cpu in (1, 2):
        (tmp_path / f"cpu{cpu}" / "cpufreq" / "scaling_governor").write_text("performance\n")
    assert doctor_system.check_governor(tmp_path).status is Status.OK


@pytest.mark.parametrize(
    ("kernel", "priority", "memory", "expected"),
    [
        ("#1 SMP PREEMPT_DYNAMIC", 0, 65536, Status.OK),
        ("#1 SMP PREEMPT_RT", 0, resource.RLIM_INFINITY, Status.WARNING),
        ("#1 SMP PREEMPT_RT", 99, 65536, Status.WARNING),
        ("#1 SMP PREEMPT_RT", 99, resource.RLIM_INFINITY, Status.OK),
    ],
)
def test_a_real_time_kernel_needs_the_limits_too(
    kernel: str, priority: int, memory: int, expected: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {resource.RLIMIT_RTPRIO: (priority, priority), resource.RLIMIT_MEMLOCK: (memory, memory)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    assert doctor_system.check_real_time(tmp_path / "realtime", kernel).status is expected


@pytest.mark.parametrize(("free_gb", "expected"), [(11.0, Status.OK), (5.0, Status.WARNING), (0.5, Status.FAILED)])
def test_disk(free_gb: float, expected: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free_gb * 1e9))
    result = doctor_system.check_disk(tmp_path / "not" / "yet")
    assert result.status is expected
    assert f"{free_gb} GB" in result.measured
    assert list(tmp_path.iterdir()) == [], "a check leaves nothing behind"


def test_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert doctor_system.check_disk(tmp_path).status is Status.FAILED


@pytest.mark.parametrize(("sync_s", "expected"), [(0.0, Status.OK), (0.004, Status.WARNING), (0.02, Status.FAILED)])
def test_fsync(sync_s: float, expected: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def sync(descriptor: int) -> None:
        clock[0] += sync_s

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr("actor.doctor.system.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("actor.doctor.system._WARN_FSYNC_MS", 2.0)
    monkeypatch.setattr("actor.doctor.system._FAIL_FSYNC_MS", 10.0)
    assert doctor_system.check_fsync(tmp_path / "run").status is expected
    assert list(tmp_path.iterdir()) == []


def test_clock() -> None:
    assert doctor_system.judge_clock(is_synchronised=True, error_s=0.4).status is Status.OK
    assert doctor_system.judge_clock(is_synchronised=False, error_s=0.0).status is Status.WARNING
    assert doctor_system.check_clock().status is not Status.FAILED


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_is_named_with_its_holder(listener: int) -> None:
    assert not is_port_free(listener)
    assert port_holder(listener).endswith(f"(pid {os.getpid()})")
    result = check_port(f"127.0.0.1:{listener}")
    assert result.status is Status.FAILED
    assert f"pid {os.getpid()}" in result.measured
    assert str(listener) in result.fix


def test_a_free_port_and_an_address_that_is_not_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert is_port_free(port)
    assert port_holder(port) == ""
    assert check_port(f"127.0.0.1:{port}").status is Status.OK
    assert check_port(f"192.0.2.1:{port}").status is Status.FAILED


def test_addresses() -> None:
    assert parse_address("robot.lab:50051") == ("robot.lab", 50051)
    assert parse_address("[::1]:1") == ("::1", 1)
    for wrong in ("robot.lab", ":50051", "robot.lab:0", "robot.lab:70000", "robot.lab:x"):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            parse_address(wrong)


def test_the_log_is_read_without_changing_it(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    assert check_log(path).status is Status.SKIPPED
    assert not path.exists()
    log = EpisodeLog(path)
    log.append([(RecordId("robot", "a", step), make_transition(step)) for step in range(3)])
    log.close()
    assert "3 records" in check_log(path).measured
    path.write_bytes(b"no database" * 1000)
    damaged = check_log(path)
    assert damaged.status is Status.FAILED
    assert damaged.fix.startswith(f"mv {path}")


def test_a_record_that_is_not_what_was_written_is_told(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path / "log.sqlite")
    log.append([(RecordId("robot", "a", step), make_transition(step)) for step in range(3)])
    log.close()
    with open_database(tmp_path / "log.sqlite", "") as database:
        database.execute("UPDATE records SET crc32 = crc32 + 1 WHERE position = 2")
    result = check_log(tmp_path / "log.sqlite")
    assert result.status is Status.FAILED
    assert "record 2" in result.measured


class Cuda:
    """torch.cuda of a machine with a GPU."""

    def __init__(self, free_gb: float) -> None:
        self.free = free_gb * 1e9

    def is_available(self) -> bool:
        return True

    def mem_get_info(self) -> tuple[float, float]:
        return self.free, 24e9

    def get_device_name(self) -> str:
        return "GPU of the test"


@pytest.mark.parametrize(("free_gb", "expected"), [(20.0, Status.OK), (3.0, Status.WARNING), (0.4, Status.FAILED)])
def test_gpu_memory(free_gb: float, expected: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_cpu(*size: int, device: str) -> Any:
        return np.ones(size)

    fake = SimpleNamespace(__version__="2.x", version=SimpleNamespace(cuda="12.8"), cuda=Cuda(free_gb), ones=on_cpu)
    monkeypatch.setitem(sys.modules, "torch", fake)
    result = check_torch()
    assert result.status is expected
    assert f"{free_gb} of 24.0 GB free" in result.measured


def test_without_a_gpu_it_is_said_that_the_cpu_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor_learner, "Path", lambda path: SimpleNamespace(exists=lambda: False))
    assert check_torch().status is Status.WARNING
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor_learner, "Path", lambda path: SimpleNamespace(exists=lambda: True))
    assert check_torch().status is Status.FAILED
