"""Propose the settings of trials: at random, or by what earlier trials have shown."""

import math
import random
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from deeplab_lightning.errors import UnavailableError
from deeplab_lightning.experiments.search_space import Parameter

_MAX_TRIES = 100  # draws in a row that were drawn before, after which hardly any is left


class Sampler(Protocol):
    """Propose settings one after the other, none of them twice."""

    def propose(self) -> dict[str, Any] | None:
        """Return the settings of the next trial; None if all have been proposed."""

    def report(self, number: int, epoch: int, miou: float) -> None:
        """Take the figure of an epoch of a trial, by the number of its proposal."""

    def end(self, number: int, miou: float | None) -> None:
        """Take the figure of a trial that trained all epochs; None for one that was stopped before."""


def make_sampler(name: str, parameters: Mapping[str, Parameter], earlier: Sequence[Mapping[str, Any]]) -> Sampler:
    """Build the sampler of a search.

    Args:
        name: `optuna` or `random`.
        parameters: Key -> its values.
        earlier: Settings that were proposed before, which are proposed again first.

    Raises:
        UnavailableError: If its package is missing.
    """
    if name == "random":
        return RandomSampler(parameters, earlier)
    if find_spec("optuna") is None:
        raise UnavailableError(
            "this search was started with the package optuna, which is missing: pip install 'deeplab_lightning[tune]'"
        )
    return OptunaSampler(parameters, earlier)


class RandomSampler:
    """Draw settings at random.

    Args:
        parameters: Key -> its values.
        earlier: Settings that were proposed before, which are proposed again first.
    """

    def __init__(self, parameters: Mapping[str, Parameter], earlier: Sequence[Mapping[str, Any]]) -> None:
        self._parameters, self._earlier = parameters, [dict(values) for values in earlier]
        self._seen: list[dict[str, Any]] = []
        self._draws = random.Random(len(earlier))  # another seed after a restart, which would draw the same again

    def propose(self) -> dict[str, Any] | None:
        """Return the settings of the next trial; None if all have been proposed."""
        for _ in range(_MAX_TRIES):
            known = self._earlier[len(self._seen) : len(self._seen) + 1]
            values = known[0] if known else {key: self._draw(p) for key, p in self._parameters.items()}
            if known or values not in self._seen:
                self._seen.append(values)
                return values
        return None

    def report(self, number: int, epoch: int, miou: float) -> None:
        """Ignore the figure."""

    def end(self, number: int, miou: float | None) -> None:
        """Ignore the figure."""

    def _draw(self, parameter: Parameter) -> Any:
        low, high = parameter.low, parameter.high
        if parameter.values:
            return self._draws.choice(parameter.values)
        if parameter.distribution == "int_uniform":
            return self._draws.randint(int(low), int(high))
        if parameter.distribution == "log_uniform_values":
            return math.exp(self._draws.uniform(math.log(low), math.log(high)))
        return self._draws.uniform(low, high)


class OptunaSampler:
    """Propose settings by Optuna's TPE (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization").

    Trials that were stopped count by their last figure, below those that trained longer.

    Args:
        parameters: Key -> its values.
        earlier: Settings that were proposed before, which are proposed again first.
    """

    def __init__(self, parameters: Mapping[str, Parameter], earlier: Sequence[Mapping[str, Any]]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._parameters, self._trials, self._reported = parameters, list[Any](), set[tuple[int, int]]()
        # Another seed after a restart, which would draw the same again.
        sampler = optuna.samplers.TPESampler(seed=len(earlier))
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions = {key: _distribution(parameter) for key, parameter in parameters.items()}
        for values in earlier:
            self._study.enqueue_trial({key: self._coded(key, value) for key, value in values.items()})

    def propose(self) -> dict[str, Any] | None:
        """Return the settings of the next trial; None if all have been proposed."""
        from optuna.trial import TrialState

        for _ in range(_MAX_TRIES):
            trial = self._study.ask(self._distributions)
            if trial.params not in [own.params for own in self._trials]:
                self._trials.append(trial)
                return {key: self._decoded(key, value) for key, value in trial.params.items()}
            self._study.tell(trial, state=TrialState.FAIL)
        return None

    def report(self, number: int, epoch: int, miou: float) -> None:
        """Take the figure of an epoch of a trial."""
        if (number, epoch) not in self._reported:  # a trial that starts again hands out its epochs again
            self._reported.add((number, epoch))
            self._trials[number].report(miou, epoch)

    def end(self, number: int, miou: float | None) -> None:
        """Take the figure of a trial that trained all epochs; None for one that was stopped before."""
        from optuna.trial import TrialState

        state = TrialState.PRUNED if miou is None else TrialState.COMPLETE
        self._study.tell(self._trials[number], miou, state=state)

    def _coded(self, key: str, value: Any) -> Any:
        """Return what Optuna gets for a value: its place in a list, since Optuna's values are plain."""
        values = self._parameters[key].values
        return values.index(value) if values else value

    def _decoded(self, key: str, value: Any) -> Any:
        values = self._parameters[key].values
        return values[value] if values else value


def _distribution(parameter: Parameter) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.values:
        return CategoricalDistribution(range(len(parameter.values)))
    if parameter.distribution == "int_uniform":
        return IntDistribution(int(parameter.low), int(parameter.high))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.distribution == "log_uniform_values")
