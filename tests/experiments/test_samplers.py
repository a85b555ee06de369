"""Settings are proposed once each, also by a search that was killed and goes on."""

from typing import Any

import pytest

from deeplab_lightning.experiments.samplers import make_sampler
from deeplab_lightning.experiments.search_space import Parameter

SPACE = {
    "rate": Parameter(distribution="log_uniform_values", low=1e-4, high=0.1),
    "crop": Parameter(distribution="int_uniform", low=2, high=3),
    "rates": Parameter(values=([6, 12], None, "auto")),
}


@pytest.mark.parametrize("name", ["random", "optuna"])
def test_a_restarted_search_repeats_its_trials_and_draws_others(name: str) -> None:
    """A sampler with the seed of the first start proposed its first settings again."""
    if name == "optuna":
        pytest.importorskip("optuna")
    first = make_sampler(name, SPACE, [])
    earlier: list[Any] = [first.propose() for _ in range(3)]
    second = make_sampler(name, SPACE, earlier)
    proposed: list[Any] = [second.propose() for _ in range(6)]
    assert proposed[:3] == earlier
    rates = [own["rate"] for own in proposed]
    assert len(set(rates)) == 6
    assert all(1e-4 <= rate <= 0.1 for rate in rates)
    assert {own["crop"] for own in proposed} <= {2, 3}
    assert all(own["rates"] in SPACE["rates"].values for own in proposed)


@pytest.mark.parametrize("name", ["random", "optuna"])
def test_nothing_is_proposed_twice(name: str) -> None:
    if name == "optuna":
        pytest.importorskip("optuna")
    sampler = make_sampler(name, {"a": Parameter(values=(1, 2)), "b": Parameter(values=(True, False))}, [])
    proposed: list[Any] = [sampler.propose() for _ in range(5)]
    assert proposed[4] is None
    assert len({tuple(own.values()) for own in proposed[:4]}) == 4
