"""python -m learner.certs: the lab's own certificate authority, and a credentials folder for learner and each actor.

    DIR/ca            the authority: ca.pem and its private key, which signs all others and leaves this folder never
    DIR/learner       what the learner is given with --credentials
    DIR/actors/ID     the same for the actor of that id, to be copied to its machine

An actor's certificate cannot pass for the learner's, and only for the actor of its id.
"""

import argparse
import contextlib
import ipaddress
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from policy.cli import run_main
from policy.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, TOKEN_FILE
from policy.errors import ConfigError

LEARNER = "learner"
_CA_DAYS = 3650
_LEAF_DAYS = 365
_CLOCK_MARGIN = timedelta(days=1)  # certificates begin so much earlier: a robot PC's clock may be behind
_TOKEN_BYTES = 32
_ACTOR_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_DNS_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}[A-Za-z0-9])?(\.[A-Za-z0-9-]{1,63})*")
_OWN_HOSTS = ("localhost", "127.0.0.1", "::1")  # through a tunnel, or on the same machine

_KeyPair = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


def make_authority(folder: Path) -> None:
    """Make a new certificate authority in a new folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CGPO lab {secrets.token_hex(4)}")])
    certificate = (
        _builder(name, name, key.public_key(), timedelta(days=_CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _make_private_folder(folder)
    _write_private(folder / KEY_FILE, _key_bytes(key))
    _write_private(folder / CA_FILE, certificate.public_bytes(serialization.Encoding.PEM))


def make_leaf(authority: Path, folder: Path, name: str, token: str, hosts: Sequence[str], valid: timedelta) -> None:
    """Make or replace the credentials folder of `name`, signed by the authority in another folder.

    hosts: DNS names and IP addresses that the learner is reached by; none for an actor, which serves nobody.
    """
    ca_key, ca = _load_authority(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
    remaining = ca.not_valid_after_utc - datetime.now(UTC)
    if remaining <= timedelta(0):
        raise ConfigError(f"the authority in {authority} has expired. Make a new set with `init`: another --out.")
    valid = min(valid, remaining)
    builder = (
        _builder(subject, ca.subject, key.public_key(), valid)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    _make_private_folder(folder)
    _write_private(folder / CA_FILE, ca.public_bytes(serialization.Encoding.PEM))
    _write_private(folder / TOKEN_FILE, token.encode() + b"\n")
    _write_private(folder / KEY_FILE, _key_bytes(key))
    _write_private(folder / CERTIFICATE_FILE, certificate.public_bytes(serialization.Encoding.PEM))


def init(out: Path, hosts: Sequence[str], actors: Sequence[str], valid: timedelta) -> None:
    """Make a whole new set of credentials. Raises ConfigError, and leaves nothing behind, when it cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} exists already, and a new authority would lock out every actor of the old one. `add-actor` and "
            "`renew` change what is there; for a new set choose another --out, or move the old folder away."
        )
    if out.resolve() == Path.cwd():
        raise ConfigError(f"--out {out} is the folder that you are in. Name a new one in it: --out credentials.")
    hosts = _checked_hosts(hosts)
    for actor in actors:
        _check_actor_id(actor)
    draft = out.with_name(f"{out.name}.{secrets.token_hex(4)}.new")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        _make_private_folder(draft)
        make_authority(draft / "ca")
        _make_private_folder(draft / "actors")
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        make_leaf(draft / "ca", draft / LEARNER, LEARNER, token, hosts, valid)
        for actor in dict.fromkeys(actors):
            make_leaf(draft / "ca", draft / "actors" / actor, actor, token, (), valid)
        draft.rename(out)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ConfigError(f"cannot write {out}: {error.strerror}. Choose another --out.") from error


def add_actor(out: Path, actor: str, valid: timedelta) -> None:
    """Make one more actor's folder. Raises ConfigError for an id that is taken or none."""
    _check_actor_id(actor)
    folder = out / "actors" / actor
    token = _read_token(out)
    if folder.exists():
        raise ConfigError(f"{folder} exists already. `python -m learner.certs renew` replaces what is in it.")
    with _writing(out):
        try:
            make_leaf(out / "ca", folder, actor, token, (), valid)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def renew(out: Path, valid: timedelta, *, is_token_new: bool = False, hosts: Sequence[str] = ()) -> None:
    """Give learner and actors new keys and certificates of the same authority, and on request a new token.

    With a new token every folder that is not copied again is worthless, whatever its certificate says. `hosts` replace
    the names that the learner is reached by. Interrupted, it is to be repeated.
    """
    token = _read_token(out)
    hosts = _checked_hosts(hosts) if hosts else _hosts(out)
    if is_token_new:
        token = secrets.token_urlsafe(_TOKEN_BYTES)
    with _writing(out):
        make_leaf(out / "ca", out / LEARNER, LEARNER, token, hosts, valid)
        for actor in _actors(out):
            make_leaf(out / "ca", out / "actors" / actor, actor, token, (), valid)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write {error.filename or out}: {error.strerror}. Mend that and give the same command again."
        ) from error


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, valid: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_MARGIN)
        .not_valid_after(now + valid)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _make_private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)  # whatever the umask


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that was never readable by others, whole."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _load_authority(folder: Path) -> _KeyPair:
    try:
        key = serialization.load_pem_private_key((folder / KEY_FILE).read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate((folder / CA_FILE).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{folder} is no certificate authority that `python -m learner.certs init` made: {error}. Give the folder "
            "above it as --out; if its key is kept elsewhere, put it back for as long as this takes."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder / KEY_FILE} is of another kind than `init` makes. Make a new set: another --out.")
    return key, certificate


def _read_token(out: Path) -> str:
    try:
        return (out / LEARNER / TOKEN_FILE).read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"{out} holds no credentials: {error.strerror}: {error.filename}. Give the folder that "
            "`python -m learner.certs init` made as --out."
        ) from error


def _actors(out: Path) -> list[str]:
    return sorted(folder.name for folder in (out / "actors").glob("*") if _ACTOR_ID.fullmatch(folder.name))


def _hosts(out: Path) -> list[str]:
    """Return the names in the learner's present certificate."""
    path = out / LEARNER / CERTIFICATE_FILE
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError(
            f"{path} does not tell the learner's names: {error}. Make a new set: another --out."
        ) from error
    return [str(name.value) for name in names]


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _checked_hosts(hosts: Sequence[str]) -> Sequence[str]:
    return tuple(dict.fromkeys([*map(_checked_host, hosts), *_OWN_HOSTS]))


def _checked_host(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if _DNS_NAME.fullmatch(host) and not re.fullmatch(r"[0-9.]+", host):
            return host
    raise ConfigError(
        f"--host {host!r} is neither a name nor an IP address. Give what the actors have in --learner, without the "
        "port: --host workstation.lab --host 192.168.1.10."
    )


def _check_actor_id(actor: str) -> None:
    if not _ACTOR_ID.fullmatch(actor) or actor == LEARNER:
        raise ConfigError(
            f"actor id {actor!r}: at most 63 letters, digits, '_', '.', '-', not beginning with a sign, and not "
            f"{LEARNER!r}. It is what the actor has as --actor-id."
        )


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, default=Path("credentials"), help="folder of all (default: %(default)s)")
    shared.add_argument("--days", type=int, default=_LEAF_DAYS, help="how long they are valid (default: %(default)s)")
    parser = argparse.ArgumentParser(
        prog="python -m learner.certs",
        description=__doc__,
        epilog="Example:\n  python -m learner.certs init --host workstation.lab --host 192.168.1.10 --actor actor-0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("init", parents=[shared], help="a new authority, learner and actors")
    command.add_argument(
        "--host", action="append", required=True, help="name or IP address that actors reach the learner by; repeatable"
    )
    command.add_argument("--actor", action="append", default=[], help="an actor's --actor-id; repeatable")
    command = commands.add_parser("add-actor", parents=[shared], help="one more actor's folder")
    command.add_argument("actor", help="its --actor-id")
    command = commands.add_parser("renew", parents=[shared], help="new keys and certificates for learner and actors")
    command.add_argument("--host", action="append", default=[], help="replaces the learner's names; repeatable")
    command.add_argument(
        "--new-token", action="store_true", help="also a new token: what is not copied again is shut out"
    )
    return parser


def _instructions(out: Path, actors: Sequence[str], *, with_learner: bool) -> str:
    lines = []
    if with_learner:
        lines += [
            "The learner's stay on this machine:",
            f"  launch/learner.sh --credentials {out / LEARNER} --host 0.0.0.0",
        ]
    for actor in actors:
        lines += [
            f"Copy those of {actor} to its machine, and give them to the actor there:",
            "  ssh ROBOT_PC mkdir -p cgpo/credentials/actors",
            f"  scp -pr {out / 'actors' / actor} ROBOT_PC:cgpo/credentials/actors/",
            f"  launch/actor.sh --credentials credentials/actors/{actor} --actor-id {actor} --learner HOST:50051",
        ]
    lines.append(f"Whoever has {out / 'ca'} can make such folders: it stays here, or on a stick in a drawer.")
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = _parser().parse_args()
    out: Path = arguments.out
    if not 1 <= arguments.days <= _CA_DAYS:
        raise ConfigError(f"--days {arguments.days} is outside 1 to {_CA_DAYS}, the life of the authority")
    valid = timedelta(days=arguments.days)
    if arguments.command == "init":
        actors = arguments.actor or ["actor-0"]
        init(out, arguments.host, actors, valid)
    elif arguments.command == "add-actor":
        actors = [arguments.actor]
        add_actor(out, arguments.actor, valid)
    else:
        actors = _actors(out) if out.is_dir() else []
        renew(out, valid, is_token_new=arguments.new_token, hosts=arguments.host)
        sys.stdout.write("New keys and certificates: restart learner and actors once all of this is done.\n")
    sys.stdout.write(_instructions(out, actors, with_learner=arguments.command != "add-actor"))


if __name__ == "__main__":
    sys.exit(run_main(main))
