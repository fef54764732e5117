"""Credentials folders: made whole and private, refused with the remedy when they are not."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from actor.channel import credentials_for
from actor.doctor.check import Status
from actor.doctor.credentials import check_credentials
from learner import certs
from policy.credentials import CERTIFICATE_FILE, KEY_FILE, TOKEN_FILE, Credentials, is_loopback
from policy.errors import EXIT_CONFIG, ConfigError

YEAR = timedelta(days=365)


@dataclass(frozen=True)
class Lab:
    """A set of credentials."""

    out: Path

    @property
    def learner(self) -> Path:
        return self.out / "learner"

    @property
    def robot(self) -> Path:
        return self.out / "actors" / "robot"

    def make_leaf(self, name: str, valid: timedelta) -> Path:
        folder = self.out.parent / f"{name}-{valid.total_seconds():.0f}"
        certs.make_leaf(self.out / "ca", folder, name, Credentials.load(self.robot).token, (), valid)
        return folder


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    certs.init(tmp_path / "lab", ["workstation.lab", "192.168.1.10"], ["robot", "second"], YEAR)
    return Lab(tmp_path / "lab")


def subject_names(folder: Path) -> list[str]:
    certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE_FILE).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def test_init_makes_folders_that_can_be_loaded(lab: Lab) -> None:
    learner, robot = Credentials.load(lab.learner), Credentials.load(lab.robot)
    assert (learner.name, robot.name) == ("learner", "robot")
    assert learner.token == robot.token
    assert learner.ca_pem == robot.ca_pem
    assert timedelta(days=364) < robot.remaining <= YEAR
    assert subject_names(lab.learner) == ["workstation.lab", "192.168.1.10", "localhost", "127.0.0.1", "::1"]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_nobody_else_can_read_what_init_makes(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        certs.init(tmp_path / "lab", ["a"], ["robot"], YEAR)
    finally:
        os.umask(before)
    paths = [tmp_path / "lab", *(tmp_path / "lab").rglob("*")]
    assert len(paths) == 15
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_authoritys_key_is_in_its_own_folder_only(lab: Lab) -> None:
    key = (lab.out / "ca" / KEY_FILE).read_bytes()
    assert [path for path in lab.out.rglob("*") if path.is_file() and path.read_bytes() == key] == [
        lab.out / "ca" / KEY_FILE
    ]


def test_secrets_are_not_in_what_a_log_would_show(lab: Lab) -> None:
    credentials = Credentials.load(lab.robot)
    assert credentials.token not in repr(credentials)
    assert "PRIVATE KEY" not in repr(credentials)


def test_init_never_overwrites(lab: Lab) -> None:
    before = (lab.learner / TOKEN_FILE).read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        certs.init(lab.out, ["workstation.lab"], ["robot"], YEAR)
    assert (lab.learner / TOKEN_FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("hosts", "actors", "words"),
    [
        (["workstation.lab:50051"], ["robot"], "without the port"),
        (["bad host"], ["robot"], "neither a name nor"),
        (["1.2.3.456"], ["robot"], "neither a name nor"),
        (["workstation.lab"], ["../robot"], "actor id"),
        (["workstation.lab"], ["learner"], "actor id"),
        (["workstation.lab"], [""], "actor id"),
    ],
)
def test_init_leaves_nothing_of_a_set_that_cannot_be(
    tmp_path: Path, hosts: list[str], actors: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        certs.init(tmp_path / "lab", hosts, actors, YEAR)
    assert list(tmp_path.iterdir()) == []


def test_an_actor_can_be_added_once(lab: Lab) -> None:
    certs.add_actor(lab.out, "third", YEAR)
    third = Credentials.load(lab.out / "actors" / "third")
    assert (third.name, third.token) == ("third", Credentials.load(lab.learner).token)
    with pytest.raises(ConfigError, match="exists already"):
        certs.add_actor(lab.out, "third", YEAR)


def test_renewing_keeps_authority_names_and_token(lab: Lab) -> None:
    before, names = Credentials.load(lab.robot), subject_names(lab.learner)
    certs.renew(lab.out, 2 * YEAR)
    after = Credentials.load(lab.robot)
    assert (after.ca_pem, after.token, after.name) == (before.ca_pem, before.token, before.name)
    assert after.key_pem != before.key_pem
    assert after.remaining > before.remaining + timedelta(days=300)
    assert subject_names(lab.learner) == names
    assert Credentials.load(lab.learner).name == "learner"


def test_renewing_can_change_the_token_of_all_and_the_learners_names(lab: Lab) -> None:
    before = Credentials.load(lab.robot).token
    certs.renew(lab.out, YEAR, is_token_new=True, hosts=["10.0.0.7"])
    tokens = {Credentials.load(folder).token for folder in (lab.learner, lab.robot, lab.out / "actors" / "second")}
    assert len(tokens) == 1
    assert before not in tokens
    assert subject_names(lab.learner)[0] == "10.0.0.7"
    assert "workstation.lab" not in subject_names(lab.learner)


@pytest.mark.parametrize("change", [certs.renew, lambda out, valid: certs.add_actor(out, "robot", valid)])
def test_a_folder_that_is_no_set_is_named(tmp_path: Path, change: Callable[[Path, timedelta], None]) -> None:
    with pytest.raises(ConfigError, match=r"learner\.certs init"):
        change(tmp_path, YEAR)


def test_without_the_authoritys_key_nothing_is_signed(lab: Lab) -> None:
    (lab.out / "ca" / KEY_FILE).rename(lab.out.parent / "stick")
    with pytest.raises(ConfigError, match="put it back"):
        certs.renew(lab.out, YEAR)
    assert Credentials.load(lab.robot).name == "robot"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "learner.certs", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_says_what_goes_where_and_no_secret(tmp_path: Path) -> None:
    out = tmp_path / "credentials"
    made = command("init", "--out", str(out), "--host", "workstation.lab")
    assert (made.returncode, made.stderr) == (0, "")
    before = Credentials.load(out / "actors" / "actor-0")
    assert f"scp -pr {out}/actors/actor-0 ROBOT_PC:" in made.stdout
    assert f"launch/learner.sh --credentials {out}/learner" in made.stdout
    renewed = command("renew", "--out", str(out), "--new-token", "--days", "20")
    after = Credentials.load(out / "actors" / "actor-0")
    assert renewed.returncode == 0
    assert after.token != before.token
    assert after.remaining < timedelta(days=20)
    assert {before.token, after.token}.isdisjoint((made.stdout + renewed.stdout).split())
    assert command("add-actor", "actor-1", "--out", str(out)).returncode == 0
    assert Credentials.load(out / "actors" / "actor-1").token == after.token


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["init"], "--host"),
        (["init", "--host", "a", "--days", "0"], "outside 1 to 3650"),
        (["add-actor", "robot"], "learner.certs init"),
    ],
)
def test_a_wrong_command_says_so_in_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    ended = command(*arguments, "--out", str(tmp_path / "none"))
    assert ended.returncode == EXIT_CONFIG
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_init_does_not_replace_the_folder_that_somebody_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--out credentials"):
        certs.init(Path("."), ["a"], ["robot"], YEAR)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [certs.renew, lambda out, valid: certs.add_actor(out, "third", valid)])
def test_a_disk_that_takes_nothing_is_said(
    lab: Lab, change: Callable[[Path, timedelta], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        change(lab.out, YEAR)
    monkeypatch.undo()
    change(lab.out, YEAR)


@pytest.mark.parametrize("name", ["ca.pem", CERTIFICATE_FILE, KEY_FILE, TOKEN_FILE])
def test_a_missing_file_is_named(lab: Lab, name: str) -> None:
    (lab.robot / name).unlink()
    with pytest.raises(ConfigError, match=f"has no {name}.*learner.certs init"):
        Credentials.load(lab.robot)


@pytest.mark.parametrize("name", [KEY_FILE, TOKEN_FILE])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_a_secret_that_others_can_use_is_refused_with_the_chmod(lab: Lab, name: str, mode: int) -> None:
    (lab.robot / name).chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        Credentials.load(lab.robot)


@pytest.mark.parametrize("name", [".", "ca.pem", CERTIFICATE_FILE])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_what_others_can_replace_is_refused(lab: Lab, name: str, mode: int) -> None:
    (lab.robot / name).chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 700"):
        Credentials.load(lab.robot)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("name", [".", "ca.pem", KEY_FILE])
def test_what_belongs_to_another_user_is_refused(lab: Lab, name: str) -> None:
    os.chown(lab.robot / name, 4711, -1)
    with pytest.raises(ConfigError, match=r"belongs to user 4711.*chown -R"):
        Credentials.load(lab.robot)


def test_a_folder_that_may_not_be_entered_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "exists", refuse)  # root, who may run this, may enter everywhere
    with pytest.raises(ConfigError, match=r"Permission denied.*chown"):
        Credentials.load(lab.robot)


def test_only_the_learners_can_serve(lab: Lab) -> None:
    assert Credentials.load(lab.learner).can_serve
    assert not Credentials.load(lab.robot).can_serve


@pytest.mark.parametrize("token", ["", "\n", "short", "two words " * 8, "ü" * 40, "x" * 40 + "\ny"])
def test_what_is_no_token_is_refused(lab: Lab, token: str) -> None:
    (lab.robot / TOKEN_FILE).write_text(token)
    with pytest.raises(ConfigError, match="a token is one line") as refused:
        Credentials.load(lab.robot)
    assert not token.strip() or token.strip() not in str(refused.value)


@pytest.mark.parametrize("name", ["ca.pem", CERTIFICATE_FILE, KEY_FILE])
@pytest.mark.parametrize("content", [b"", b"no PEM at all", b"-----BEGIN CERTIFICATE-----\nAAAA\n", bytes(100_000)])
def test_a_damaged_file_is_named(lab: Lab, name: str, content: bytes) -> None:
    (lab.robot / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name}.*learner.certs renew"):
        Credentials.load(lab.robot)


def test_a_key_of_another_folder_is_refused(lab: Lab) -> None:
    shutil.copy(lab.learner / KEY_FILE, lab.robot / KEY_FILE)
    with pytest.raises(ConfigError, match=r"does not belong to certificate\.pem"):
        Credentials.load(lab.robot)


def test_a_certificate_of_another_authority_is_refused(lab: Lab, tmp_path: Path) -> None:
    certs.init(tmp_path / "other", ["a"], ["robot"], YEAR)
    shutil.copy(tmp_path / "other" / "learner" / "ca.pem", lab.robot / "ca.pem")
    with pytest.raises(ConfigError, match=r"not signed by the CA in ca\.pem"):
        Credentials.load(lab.robot)


def test_an_expired_certificate_is_refused_with_its_date_and_the_command(lab: Lab) -> None:
    folder = lab.make_leaf("robot", -timedelta(hours=1))
    with pytest.raises(ConfigError, match=r"expired on \d{4}-\d\d-\d\d \d\d:\d\d UTC.*learner\.certs renew"):
        Credentials.load(folder)


def test_a_certificate_that_ends_soon_is_said(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    Credentials.load(lab.robot)
    assert not caplog.records
    Credentials.load(lab.make_leaf("robot", timedelta(days=7)))
    assert "expires in 7.0 days" in caplog.text
    assert "learner.certs renew" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.10", "workstation.lab", "localhost.evil.org", ""])
def test_everything_else_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_an_actor_without_credentials_is_warned_beyond_its_machine(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    assert credentials_for("127.0.0.1:50051", None) is None
    assert credentials_for("workstation.lab:50051", lab.robot) == Credentials.load(lab.robot)
    assert not caplog.records
    assert credentials_for("workstation.lab:50051", None) is None
    assert "neither encrypted nor authenticated" in caplog.text


def test_the_doctor_judges_a_folder(lab: Lab) -> None:
    address = "workstation.lab:50051"
    assert check_credentials(lab.robot, "robot", address).status is Status.OK
    assert check_credentials(None, "robot", "127.0.0.1:50051").status is Status.SKIPPED
    missing = check_credentials(None, "robot", address)
    assert (missing.status, "learner.certs init" in missing.fix) == (Status.WARNING, True)
    anothers = check_credentials(lab.robot, "second", address)
    assert (anothers.status, "add-actor second" in anothers.fix) == (Status.FAILED, True)
    soon = check_credentials(lab.make_leaf("robot", timedelta(days=20)), "robot", address)
    assert (soon.status, soon.limit) == (Status.WARNING, "30 days")
    (lab.robot / KEY_FILE).chmod(0o644)
    exposed = check_credentials(lab.robot, "robot", address)
    assert (exposed.status, "chmod 600" in exposed.fix) == (Status.FAILED, True)
