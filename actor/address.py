"""Addresses of the form HOST:PORT."""

from policy.errors import ConfigError


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of "HOST:PORT" ("[::1]:50051" too). Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(f"--learner {address!r} is not HOST:PORT with a port from 1 to 65535")
    return host.strip("[]"), int(port)
