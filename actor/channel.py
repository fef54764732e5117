"""How the actor's side reaches the learner: by mutual TLS and a token, or in the open."""

import logging
import socket
import ssl
from pathlib import Path

import grpc

from policy.credentials import CERTIFICATE_FILE, KEY_FILE, Credentials, is_loopback
from policy.grpc_options import CHANNEL_OPTIONS

logger = logging.getLogger(__name__)

_EXPLAIN_TIMEOUT_S = 2.0
_COPY = "Copy the folder that `python -m learner.certs` made for this actor to this machine again."
_OTHER_NAMES = "it is for other names. `python -m learner.certs renew --host NAME ...` gives it the one used here."
_NOT_VERIFIED = {  # by OpenSSL's words about the learner's certificate
    "mismatch": _OTHER_NAMES,
    "not valid for": _OTHER_NAMES,
    "purpose": "it is an actor's. Give the learner its own folder; if it has that, something else pretends to be it.",
    "expired": "it has expired, by this machine's clock. `python -m learner.certs renew`, there.",
}


def credentials_for(address: str, folder: Path | None) -> Credentials | None:
    """Return the credentials to reach HOST:PORT with, None where none are configured.

    Raises ConfigError for a folder that cannot be used. Warns where anybody on the network could be the learner.
    """
    if folder is not None:
        return Credentials.load(folder)
    if not is_loopback(address.rpartition(":")[0]):
        logger.warning(
            "the link to %s is neither encrypted nor authenticated: whoever is on that network can read the steps and "
            "give this robot weights. `python -m learner.certs init` makes credentials (SECURITY.md).",
            address,
        )
    return None


def open_channel(address: str, credentials: Credentials | None) -> grpc.Channel:
    """Return a channel to HOST:PORT; it connects when it is used. Close it.

    With credentials the learner must prove by its certificate that it is HOST, and every call carries the token.
    """
    if credentials is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    transport = grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)
    token = grpc.access_token_call_credentials(credentials.token)
    return grpc.secure_channel(address, grpc.composite_channel_credentials(transport, token), options=CHANNEL_OPTIONS)


def explain_unavailable(address: str, credentials: Credentials | None) -> str:
    """Return why TLS with HOST:PORT fails, and what to do; empty where it does not, or nobody answers there.

    gRPC itself says no more than UNAVAILABLE. Blocks for some seconds at most.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with (
            socket.create_connection((host, int(port)), _EXPLAIN_TIMEOUT_S) as connection,
            _context(credentials).wrap_socket(connection, server_hostname=host) as session,
        ):
            if credentials is None:
                return f"the learner at {address} asks for credentials. Give this actor its own: --credentials FOLDER."
            is_accepted = bool(session.recv(1))  # TLS 1.3 judges a client's certificate after the client is done
    except ssl.SSLCertVerificationError as error:
        known = [text for words, text in _NOT_VERIFIED.items() if words in error.verify_message]
        reason = known[0] if known else f"it was not made by the authority in ca.pem here. {_COPY}"
        return f"the certificate of the learner at {address} is not accepted ({error.verify_message}): {reason}"
    except ssl.SSLError as error:
        if credentials is None or isinstance(error, ssl.SSLEOFError):  # hung up on without a word: full, or stopping
            return ""
        return f"the learner at {address} speaks no TLS ({error.reason}). Start it with --credentials FOLDER."
    except (OSError, ValueError):
        return ""
    if is_accepted:
        return ""
    return (
        f"the learner at {address} does not accept the certificate in {credentials.folder}, which is valid for "
        f"{credentials.remaining.days} more days by this machine's clock. Either that clock or the learner's is wrong, "
        f"or the learner has a new authority. {_COPY}"
    )


def _context(credentials: Credentials | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if credentials is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # it only looks whether there is TLS; nothing is sent
    else:
        context.load_verify_locations(cadata=credentials.ca_pem.decode())
        context.load_cert_chain(credentials.folder / CERTIFICATE_FILE, credentials.folder / KEY_FILE)
    return context
