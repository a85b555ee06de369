"""One line for a wrong command line, from the messages of the real parsers."""

import argparse
from pathlib import Path
from typing import Literal

import jsonargparse
import pytest

from deeplab_lightning.usage import OneLineUsage, one_line


class Parser(OneLineUsage, jsonargparse.ArgumentParser):
    """A parser of typed options."""


class Plain(OneLineUsage, argparse.ArgumentParser):
    """A parser of the standard library."""


class Shape:
    """A class that options name."""

    def __init__(self, sides: int = 3) -> None:
        self.sides = sides


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--epochs", "ten"], "error: epochs: expected int; got ten"),
        (["--size", "big"], "error: size: expected int, got big"),
        (["--mode", "most"], "error: mode: expected one of 'min', 'max', got most"),
        (["--sise", "1"], "error: unrecognized arguments: --sise 1. Did you mean --size?"),
        (["--size"], "error: argument --size: expected one argument"),
        (["--shape", "Round"], "error: shape: no class is called Round"),
        (
            ["--shape", '{"class_path": "Shape", "init_args": {"side": 3}}'],
            "error: shape: Option 'side' is not accepted: did you mean sides?",
        ),
    ],
)
def test_a_wrong_option_is_one_line_and_exits_2(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser(prog="tool")
    parser.add_argument("--epochs", type=int | None)
    parser.add_argument("--size", type=int)
    parser.add_argument("--mode", type=Literal["min", "max"])
    parser.add_subclass_arguments(Shape, "shape", required=False)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_parsers_of_the_standard_library_report_in_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Plain(prog="tool")
    parser.add_argument("--output", required=True, type=Path)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: the following arguments are required: --output\n"


def test_long_values_are_cut() -> None:
    line = one_line(f"Parser key \"net\":\n  Expected a <class 'int'>. Got value: {'x' * 1000}")
    assert line.startswith("net: expected int, got xxx")
    assert len(line) < 250
