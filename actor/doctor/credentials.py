"""The doctor's check of a credentials folder: is it whole, private, this program's own, and valid for long enough?"""

from datetime import timedelta
from pathlib import Path

from actor.address import parse_address
from actor.doctor.check import Result, failed, ok, refused, skipped, warning
from policy.credentials import RENEW_BEFORE, Credentials, is_loopback
from policy.errors import ConfigError

_INIT = "on the workstation: python -m learner.certs init --host NAME_OF_THE_WORKSTATION"
_RENEW = (
    "on the workstation: python -m learner.certs renew; copy each folder to its machine again, restart both programs"
)


def check_credentials(folder: Path | None, name: str, address: str) -> Result:
    """name: whose they must be. address: HOST:PORT of the learner, to tell whether they can be missed."""
    host, _ = parse_address(address)
    if folder is None:
        if is_loopback(host):
            return skipped("none are given; none are needed on one machine or through a tunnel")
        return warning(
            f"none: the link to {address} is neither encrypted nor authenticated",
            detail="Whoever is on that network can read the steps, add some, and give the robot weights.",
            fix=f"{_INIT}, and --credentials FOLDER on both sides (SECURITY.md)",
        )
    try:
        credentials = Credentials.load(folder)
    except ConfigError as error:
        return refused(error)
    days = credentials.remaining / timedelta(days=1)
    measured = f"{folder}: {credentials.name}, readable by this user alone, valid for {days:.0f} more days"
    if credentials.name != name:
        return failed(
            measured,
            limit=f"those of {name}",
            fix=f"copy the folder of {name} here, or give --actor-id {credentials.name}; new ones: python -m "
            f"learner.certs add-actor {name}, on the workstation",
        )
    limit = f"{RENEW_BEFORE.days} days"
    if credentials.remaining < RENEW_BEFORE:
        return warning(measured, limit=limit, fix=_RENEW)
    return ok(measured, limit=limit)
