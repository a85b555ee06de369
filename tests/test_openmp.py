import subprocess
import sys

import pytest

CODE = "import deeplab_lightning, os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "1000 None"),
        ({"GOMP_SPINCOUNT": "77"}, "77 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_threads_sleep_unless_the_user_says_otherwise(given: dict[str, str], found: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE], env=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


def test_the_limit_comes_before_torch() -> None:
    code = "import sys, deeplab_lightning; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
