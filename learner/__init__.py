"""The workstation side: ingest, episode log, replay, CGPO updates. Imports neither actor nor robot."""
