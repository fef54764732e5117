"""How the actor's side reaches the learner: by mutual TLS and a token, or in the open."""

import grpc

from policy.credentials import Credentials
from policy.grpc_options import CHANNEL_OPTIONS


def open_channel(address: str, credentials: Credentials | None) -> grpc.Channel:
    """Return a channel to HOST:PORT; it connects when it is used. Close it.

    With credentials the learner must prove by its certificate that it is HOST, and every call carries the token.
    """
    if credentials is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    transport = grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)
    token = grpc.access_token_call_credentials(credentials.token)
    return grpc.secure_channel(address, grpc.composite_channel_credentials(transport, token), options=CHANNEL_OPTIONS)
