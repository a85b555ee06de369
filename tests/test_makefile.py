"""The Makefile names files that exist, and describes its targets."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_every_benchmark_has_a_target() -> None:
    named = re.findall(r"tests/benchmarks/test_\w+\.py", MAKEFILE)
    assert sorted(named) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/benchmarks/test_*.py"))


def test_every_target_is_phony_and_has_a_line_of_help() -> None:
    targets = re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE)
    helped = re.findall(r"^([a-z-]+):.*## \w", MAKEFILE, flags=re.MULTILINE)
    [phony] = re.findall(r"^\.PHONY: (.*)", MAKEFILE, flags=re.MULTILINE)
    assert targets == helped
    assert sorted(phony.split()) == sorted(targets)
