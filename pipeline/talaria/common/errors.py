"""The errors a user meets, each one a sentence that says what, where and what to do."""


class UserError(ValueError):
    """Bad usage, configuration or input. The CLI prints it as one line and exits 2; a DAG task fails without retry."""


class ConfigError(UserError):
    """A configuration file, override or trigger form that does not validate."""


class DataError(UserError):
    """A file or row that cannot be used; the message names file, row and reason."""


class Unavailable(UserError):
    """An external service does not answer now; a later attempt may succeed, so a DAG task is retried."""


class TrainingStopped(RuntimeError):
    """A training ended before it was done; its checkpoints stay, so the same command resumes from the last one."""
