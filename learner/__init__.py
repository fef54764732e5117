"""The workstation side: ingest, episode log, replay, CGPO updates. Imports neither actor nor robot."""

import os

# Before gRPC is imported, which otherwise writes a line for each handshake that fails: a stranger could fill the disk.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
