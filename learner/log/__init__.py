"""python -m learner.log: what an episode log holds, whether it is sound, and a way out of it. Reads only; no torch."""
