"""The doctor: checks all that an actor or a learner would use (python -m actor.doctor)."""
