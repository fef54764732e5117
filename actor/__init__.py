"""The robot side: control loop, tasks, operator, spool and link. Imports no learner code."""
