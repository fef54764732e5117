"""One torch thread for the whole suite: small networks are slower on several, and figures vary with their number."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it, and for the processes that tests start

import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("long", max_examples=5000, deadline=None)
