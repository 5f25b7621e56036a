"""Errors of training; apart, so that they can be caught without loading TensorFlow."""


class TrainingError(RuntimeError):
    """Training cannot go on; the text says in which round, what was seen and what to do."""


class CacheError(RuntimeError):
    """A working file (a checkpoint, a client's images) cannot be written; names the file and the reason."""

    def __init__(self, path, error: OSError):
        super().__init__(
            f"{path} could not be written: {error.strerror or error}. Free some space or set FL_UTILS_CACHE to "
            "another folder, then run again."
        )
