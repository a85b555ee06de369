"""Errors that the user can mend: the command line shows them in one line, and everything else with a traceback."""


class UserError(ValueError):
    """An input, an option or a file cannot be used as it is; the message says what to do."""


class DataError(UserError):
    """A data set cannot be used as it is."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnavailableError(UserError, RuntimeError):
    """Something that the command needs cannot be had here: a package, a server, weights, space."""
