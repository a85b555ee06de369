"""Define the errors that users can fix: the command line shows them in one line, all others with a traceback."""


class UserError(ValueError):
    """Report an input, an option or a file that cannot be used; the message says what to do."""


class DataError(UserError):
    """Report a data set that cannot be used."""


class MissingFileError(UserError, FileNotFoundError):
    """Report a file or folder that the user named and that does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnavailableError(UserError, RuntimeError):
    """Report something that the command needs and cannot get: a package, a server, weights, disk space."""


def exception_chain(error: BaseException) -> list[BaseException]:
    """Return an exception, its cause or context, the cause of that, and so on."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def is_interrupt(error: BaseException) -> bool:
    """Check whether an exception is Ctrl-C, or what a library raised while it handled Ctrl-C, as torch.save does."""
    return any(isinstance(e, KeyboardInterrupt) for e in exception_chain(error))


def unwrapped(error: BaseException) -> BaseException:
    """Return the first exception of a chain that jsonargparse did not raise itself.

    jsonargparse turns what a class raises in its constructor into an error of its own.
    """
    return next((e for e in exception_chain(error) if not raised_in(e, "jsonargparse")), error)


def raised_in(error: BaseException, package: str) -> bool:
    """Check whether an exception was raised in a file of a package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] == package
