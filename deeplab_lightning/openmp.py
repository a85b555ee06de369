"""How long OpenMP's threads spin while they wait, which decides the speed of a CPU that others use too."""

import os

SPIN_COUNT = "GOMP_SPINCOUNT"
_SPINS = "1000"


def limit_spinning() -> None:
    """Let waiting threads sleep after a thousand turns, unless the user's environment says otherwise.

    OpenMP's threads spin at each barrier for as long as they like. Where another process, or their own second team
    (autograd has one), holds the core that the other thread needs, each of the thousands of barriers of a training
    step waits for the scheduler's tick, about 4 ms. With both cores busy elsewhere, an epoch of the demo took 31 s with
    this limit and more than 110 s without. On an idle machine a small layer loses about 10 %, a training step less.

    OpenMP reads the variable when torch is loaded, so this has to run before. Child processes inherit it.
    """
    if not {SPIN_COUNT, "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ[SPIN_COUNT] = _SPINS
