"""Print the lowest version of each dependency as a constraint of pip, such as `numpy==2.0`.

python -m tests.lowest_versions [EXTRA ...]
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest_versions(content: str, extras: Iterable[str]) -> list[str]:
    """Return `name==version` for each dependency and each package of some extras, the highest if it is bound twice.

    Args:
        content: Text of a pyproject.toml.
        extras: Names of the extras.
    """
    project = tomllib.loads(content)["project"]
    lowest: dict[str, str] = {}
    for text in [*project["dependencies"], *(t for name in extras for t in project["optional-dependencies"][name])]:
        found = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)(?:,<[\d.]+)?", text)
        assert found is not None, text
        name, version = found.groups()
        lowest[name] = max(version, lowest.get(name, "0"), key=lambda v: [int(part) for part in v.split(".")])
    return [f"{name}=={version}" for name, version in sorted(lowest.items())]


if __name__ == "__main__":
    print("\n".join(lowest_versions(PROJECT.read_text(), sys.argv[1:])))
