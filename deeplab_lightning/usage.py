"""Report a wrong command line in one line."""

import difflib
import re
import sys
from typing import Any, NoReturn

_MAX_PART = 200  # characters of one part of a message
# Lines of jsonargparse's messages that repeat the type of an argument, or describe a type that nobody meant.
_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes: ",
    "Errors:",
    "Given value type: ",
    "Expected a path but ",
    "Expected a <class 'NoneType'>",
    "Problem with given class_path ",
    "Expected an instantiatable class, but ",
)
_NO_CLASS = "no class is called "
_SCHEDULES = "of several schedules, take SequentialSchedule or ChainedSchedule, which build them with the optimiser"
_PLAINER = (  # patterns and their replacements
    (r"^the following arguments are required: optimizer$", _SCHEDULES),
    (r"^Type [\w.]+\.Callable\[.*\] expects a function or a callable class: ", ""),
    (r"^Expected 'builtins\.tuple' to be a class that .*", "options of a class need the class: name it before them"),
    (r"^Parser key \"(.+?)\":$", r"\1:"),
    (r"<class '(?:[\w]+\.)*(\w+)'>", r"\1"),
    (r"\btyping\.Literal\[(.*?)\]", r"one of \1"),
    (r"^Expected a dot import path string: ", _NO_CLASS),
    (r"^Expected an? ", "expected "),
    (r"^Given value: ", "got "),
    (r"^got (NestedArg|Namespace)\(.*$|^got \{'class_path'.*$", ""),  # what is inside was named before
    (r"\. Got value: ", ", got "),
    (r", got Namespace\(.*$", ""),
)


def usage_error(message: str) -> NoReturn:
    """Print why a command line cannot be run, and exit with status 2.

    Args:
        message: One line.
    """
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


class OneLineUsage:
    """Print a wrong command line as one line instead of a page of usage.

    To be inherited before the parser, argparse's or jsonargparse's.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message in one line and exit with status 2."""
        if not getattr(self, "exit_on_error", True):  # a class of an argument with several types: the next may fit
            super().error(message, ex)  # type: ignore[misc]
        usage_error(one_line(message) + self._suggestion(message))

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check a configuration; the error of an option that a class does not take says which ones it takes."""
        try:
            super().validate(*args, **kwargs)  # type: ignore[misc]
        except KeyError as error:
            wrong = re.fullmatch(r"Option '([^']+)' is not accepted", str(error.args[0]))
            known = sorted(action.dest for action in self._actions if action.dest != "help")  # type: ignore[attr-defined]
            if wrong is None or not known:
                raise
            similar = difflib.get_close_matches(wrong[1], known, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"allowed are {', '.join(known)}"
            raise type(error)(f"{error.args[0]}: {hint}") from error

    def _suggestion(self, message: str) -> str:
        """Return the option that an unknown one probably means, as the end of the message."""
        unknown = re.match(r"unrecognized arguments: (--[\w.]+)", message)
        if unknown is None:
            return ""
        options: list[str] = [option for parser in _parsers(self) for option in parser._option_string_actions]
        similar = difflib.get_close_matches(unknown[1], options, n=1, cutoff=0.75)
        return f". Did you mean {similar[0]}?" if similar else ""


def _parsers(parser: Any) -> list[Any]:
    """Return a parser and those of its subcommands."""
    subcommands = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    inner = [own for choices in subcommands for own in choices.values() if hasattr(own, "_option_string_actions")]
    return [parser, *inner]


def one_line(message: str) -> str:
    """Shorten a parser's message to one line.

    Args:
        message: A message of argparse or jsonargparse. That of an argument with several types has a line per type.
    """
    lines = [line.strip().removeprefix("- ").rstrip() for line in message.splitlines()]
    parts = [_plain(line) for line in lines if line and not line.startswith(_NOISE)]
    parts = list(dict.fromkeys(part for part in parts if part))
    if not parts:
        return " ".join(message.split())
    if any(part.startswith(_NO_CLASS) for part in parts):
        parts = [part for part in parts if not part.startswith("got ")]  # the value is the name
    # A key is followed by what is wrong with its value.
    return "".join(f"{part} " if part.endswith(":") else f"{part}; " for part in parts).rstrip(" ;")


def _plain(line: str) -> str:
    for pattern, replacement in _PLAINER:
        line = re.sub(pattern, replacement, line)
    return line if len(line) <= _MAX_PART else f"{line[: _MAX_PART - 3]}..."
