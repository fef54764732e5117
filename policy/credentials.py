"""A folder of credentials: what one end of the link proves itself with, and what it knows the other end by.

`python -m learner.certs` makes these folders. Nothing in here is ever logged.
"""

import ipaddress
import logging
import os
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from policy.errors import ConfigError

CA_FILE, CERTIFICATE_FILE, KEY_FILE, TOKEN_FILE = "ca.pem", "certificate.pem", "private_key.pem", "token"
RENEW_BEFORE = timedelta(days=30)
_MIN_TOKEN_CHARACTERS = 32  # of base64: 192 bits
_MAX_FILE_BYTES = 64 << 10
_WRITABLE, _USABLE = 0o022, 0o077  # permission bits of others: to change a file, to do anything with it

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What Credentials.load read and checked."""

    folder: Path
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    token: str = field(repr=False)
    name: str
    """The certificate's common name: the actor's id, or "learner"."""
    can_serve: bool
    """Whether an actor takes the certificate for a learner's."""
    expires: datetime
    """When certificate or CA ends, whichever is first, UTC."""

    @classmethod
    def load(cls, folder: Path) -> "Credentials":
        """Read and check a folder. Raises ConfigError with the command that mends what is wrong."""
        try:
            missing = [
                name for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE, TOKEN_FILE) if not (folder / name).exists()
            ]
        except OSError as error:  # the folder is another user's
            raise _unreadable(folder, folder, error) from error
        if missing:
            raise ConfigError(
                f"the credentials folder {folder} has no {', '.join(missing)}. `python -m learner.certs init` on the "
                "learner's machine makes these folders: copy the whole of the one that is meant for this machine."
            )
        _check_access(folder, folder.stat(), _WRITABLE)
        key_pem, token = _read(folder / KEY_FILE, _USABLE), _read_token(folder / TOKEN_FILE)
        ca_pem, certificate_pem = _read(folder / CA_FILE), _read(folder / CERTIFICATE_FILE)
        ca, certificate = _parse(folder / CA_FILE, ca_pem), _parse(folder / CERTIFICATE_FILE, certificate_pem)
        _check_key(folder, certificate, key_pem)
        try:
            certificate.verify_directly_issued_by(ca)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise _broken(folder, f"{CERTIFICATE_FILE} was not signed by the CA in {CA_FILE}") from error
        _check_dates(folder / CERTIFICATE_FILE, certificate)
        _check_dates(folder / CA_FILE, ca)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if len(names) != 1 or not isinstance(names[0].value, str):
            raise _broken(folder, f"{CERTIFICATE_FILE} names nobody")
        credentials = cls(
            folder=folder,
            ca_pem=ca_pem,
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            token=token,
            name=names[0].value,
            can_serve=_can_serve(certificate),
            expires=min(certificate.not_valid_after_utc, ca.not_valid_after_utc),
        )
        credentials.warn_if_ending()
        return credentials

    def warn_if_ending(self) -> None:
        """Say that they should be renewed, if so."""
        days = self.remaining / timedelta(days=1)
        if self.remaining < RENEW_BEFORE:
            logger.warning(
                "%s %s. %s", self.folder, f"expires in {days:.1f} days" if days > 0 else "has expired", RENEW
            )

    @property
    def remaining(self) -> timedelta:
        """Time until it expires; negative afterwards."""
        return self.expires - datetime.now(UTC)


RENEW = (
    "On the learner's machine, `python -m learner.certs renew` makes new ones in the folder that init made; copy each "
    "to its machine again and restart learner and actors."
)


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can be at `host`, a name or an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _read(path: Path, forbidden: int = _WRITABLE) -> bytes:
    """forbidden: permission bits, any of which would let others use the file for what they should not."""
    try:
        with path.open("rb") as file:
            _check_access(path, os.fstat(file.fileno()), forbidden)
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, path.parent, error) from error
    if len(data) > _MAX_FILE_BYTES:
        raise _broken(path.parent, f"{path.name} has more than {_MAX_FILE_BYTES >> 10} KiB and is not what init wrote")
    return data


def _check_access(path: Path, status: os.stat_result, forbidden: int) -> None:
    """Refuse what other users could have put there, or could read where that is forbidden."""
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        problem = f"belongs to user {status.st_uid}, not to the one who runs this program"
    elif mode & forbidden:
        problem = f"has mode {mode:04o}, so other users of this machine can use it"
    else:
        return
    folder = path if stat.S_ISDIR(status.st_mode) else path.parent
    raise ConfigError(
        f"{path} {problem}. Make it yours alone: `sudo chown -R $USER {folder} && chmod 700 {folder} && chmod 600 "
        f"{folder}/*`. If others had access to this machine, make new credentials: `python -m learner.certs renew "
        "--new-token`."
    )


def _unreadable(path: Path, folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot read {path}: {error.strerror}. It must belong to the user who runs this program: "
        f"`sudo chown -R $USER {folder}`."
    )


def _read_token(path: Path) -> str:
    data = _read(path, _USABLE).strip()
    token = data.decode("ascii", "replace")
    if len(token) < _MIN_TOKEN_CHARACTERS or not all("!" <= character <= "~" for character in token):
        raise _broken(
            path.parent,
            f"{TOKEN_FILE} holds {len(token)} characters; a token is one line of at least {_MIN_TOKEN_CHARACTERS} "
            "letters, digits and signs",
        )
    return token


def _parse(path: Path, data: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise _broken(path.parent, f"{path.name} is no certificate in PEM form") from error


def _check_key(folder: Path, certificate: x509.Certificate, key_pem: bytes) -> None:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:  # TypeError: it has a password
        raise _broken(folder, f"{KEY_FILE} is no private key in PEM form without a password") from error
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise _broken(folder, f"{KEY_FILE} does not belong to {CERTIFICATE_FILE}")


def _check_dates(path: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise ConfigError(f"{path} expired on {_date(certificate.not_valid_after_utc)}, it is {_date(now)}. {RENEW}")
    if now < certificate.not_valid_before_utc:
        raise ConfigError(
            f"{path} is valid from {_date(certificate.not_valid_before_utc)}, and this machine believes it is "
            f"{_date(now)}. Set its clock: `sudo timedatectl set-ntp true`."
        )


def _can_serve(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in usages


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _broken(folder: Path, problem: str) -> ConfigError:
    return ConfigError(f"the credentials folder {folder} cannot be used: {problem}. {RENEW}")
