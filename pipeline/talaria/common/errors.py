"""The errors a user meets, each one a sentence that says what, where and what to do."""


class UserError(ValueError):
    """Bad usage, configuration or input. The CLI prints it as one line and exits 2; a DAG task fails without retry."""


class ConfigError(UserError):
    """A configuration file, override or trigger form that does not validate."""


class DataError(UserError):
    """A file or row that cannot be used; the message names file, row and reason."""


class Unavailable(UserError):
    """Something outside that does not answer now; the same attempt may succeed later, so a DAG task tries again."""


class TrainingStopped(RuntimeError):
    """A training ended before it was done; its checkpoints stay, so the same again goes on from the last one."""
