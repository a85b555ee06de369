"""Print the lowest version of each dependency as a constraint of pip, such as `numpy==2.0`.

    python -m tests.lowest_versions [NAME ...]

NAME: packages that are left out.
"""

import re
import sys
import tomllib
from collections.abc import Collection
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest_versions(content: str, left_out: Collection[str] = ()) -> list[str]:
    """Return `name==version` for each dependency and each package of an extra, the highest if it is bound twice.

    Args:
        content: Text of a pyproject.toml.
        left_out: Names of packages.
    """
    project = tomllib.loads(content)["project"]
    lowest: dict[str, str] = {}
    for text in [*project["dependencies"], *(t for part in project["optional-dependencies"].values() for t in part)]:
        found = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)(?:,<[\d.]+)?", text)
        assert found is not None, text
        name, version = found.groups()
        lowest[name] = max(version, lowest.get(name, "0"), key=lambda v: [int(part) for part in v.split(".")])
    return [f"{name}=={version}" for name, version in sorted(lowest.items()) if name not in left_out]


if __name__ == "__main__":
    print("\n".join(lowest_versions(PROJECT.read_text(), sys.argv[1:])))
