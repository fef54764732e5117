"""The robot side: control loop, tasks, operator, spool and link. Imports no learner code."""

import os

# Before gRPC is imported, which otherwise writes a line at each attempt to connect and buries what the link says of it.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
