"""Robots, real and simulated, behind one Protocol; the safety gate. Imports none of the other rooms."""
