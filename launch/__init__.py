"""Launchers: compose the learner and actor processes. Imports no code of either."""
