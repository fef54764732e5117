"""Actor and learner killed, frozen and cut off from each other again and again; what is logged against what was done.

tests/faults use the same parts: proxy.py between the two, witness.py inside the actor, ends.py for their processes and
oracle.py for the comparison.
"""
