"""What the policy computes, sooner on a CPU: first layers split, activations and products compiled, weights prepared.

Equal up to rounding to the plain modules beside this folder, which run wherever these do not.
"""
