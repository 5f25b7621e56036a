"""Errors of training; apart, so that they can be caught without loading TensorFlow."""


class TrainingError(RuntimeError):
    """Training cannot go on; the text says in which round, what was seen and what to do."""
