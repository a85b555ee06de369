"""Write single values and comments of a YAML file."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

_LINE = 120  # characters
_MAX_NAMED = 3  # texts in one comment


def scalar(value: Any) -> str:
    """Write a value, a list or a mapping in one line, quoted where YAML needs it."""
    return yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True).strip()[1:-1]


def commented(line: str, comment: str) -> Iterator[str]:
    """Yield a line with a comment; a long one stands above it, in several lines if needed.

    Args:
        line: The line, with the blanks before it.
        comment: What to say, in one line.
    """
    comment = " ".join(comment.split())
    if len(line) + len(comment) + 3 <= _LINE:
        yield f"{line} # {comment}"
        return
    indent = line[: len(line) - len(line.lstrip())]
    yield from comment_lines(comment, indent)
    yield line


def comment_lines(comment: str, indent: str = "") -> list[str]:
    """Break a comment into lines.

    Args:
        comment: What to say, in one line.
        indent: Blanks before each line.
    """
    lead = f"{indent}# "
    lines = textwrap.wrap(comment, _LINE, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False)
    return lines or [lead]


def some(texts: Sequence[str]) -> str:
    """List the first texts, and the number of the others."""
    others = f" and {len(texts) - _MAX_NAMED} more" if len(texts) > _MAX_NAMED else ""
    return ", ".join(texts[:_MAX_NAMED]) + others


def block(key: str, items: Sequence[tuple[str, str]], indent: str, comment: str) -> Iterator[str]:
    """Yield a list with one item per line, each with its comment.

    Args:
        key: The key of the list.
        items: Items as YAML, and their comments.
        indent: Blanks before the key.
        comment: Comment of the key.
    """
    yield from commented(f"{indent}{key}:", comment)
    for item, text in items:
        yield from commented(f"{indent}  - {item}", text)
