"""The success classifier: examples from the episode log, training, reports, and retraining beside the trainer."""
