"""Say in one sentence what a comparison shows, and no more than its design can show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deeplab_lightning.experiments.settings import DIGEST, PROCESSES, recipe_differences
from deeplab_lightning.experiments.significance import UNKNOWN, Difference

LEVEL = 0.05
"""Adjusted p-values below this one are called a difference."""
_CONFOUNDERS = ("data.n_folds", "data.dataset", "data.train_transforms.crop_size", "trainer.max_epochs", PROCESSES)
"""Settings that change a result without being what experiments usually compare."""
SEEDS = ("seed_everything", "data.seed")
"""Settings that no recipe consists of."""
_OF_DATA = ("data.n_folds", "data.dataset")  # with another split or other data, nothing is comparable
_MAX_NAMED = 4  # settings in one sentence
_MAX_VALUE = 40  # characters of a value in a sentence


@dataclass(frozen=True)
class Verdict:
    """Hold what a comparison of an experiment with the baseline shows.

    Attributes:
        sentence: The answer, the same in the terminal, on the page, in CSV and in JSON.
        deciding: The pooled difference with the interval and the p-value that decide; nan where there are none.
        basis: What the interval is over: `folds`, `seeds`, `images` or `groups of images`; empty without an interval.
        detectable: Smallest difference that this design finds in 80 % of repetitions; nan if unknown.
        differing: Settings that differ, each with both values.
        names: Names of the experiment and of the baseline.
        unknown: Name of the one whose settings are unknown; empty if none.
        is_stopped: Whether one of the two was stopped early, so that nothing was tested.
    """

    sentence: str
    deciding: Difference
    basis: str
    detectable: float
    differing: dict[str, tuple[Any, Any]]
    names: tuple[str, str]
    unknown: str = ""
    is_stopped: bool = False

    @property
    def counted_p(self) -> float:
        """Return the p-value to adjust: 1 of what was stopped early, which might have been found to differ."""
        return 1.0 if self.is_stopped else self.deciding.p

    def adjusted(self, p: float) -> "Verdict":
        """Return the verdict with a p-value that was adjusted for another number of comparisons."""
        if math.isnan(self.deciding.p):
            return self
        found = decide(self.names, self.deciding, self.basis, p, self.detectable, self.differing, unknown=self.unknown)
        return replace(found, basis=self.basis)


def decide(
    names: tuple[str, str],
    deciding: Difference,
    basis: str,
    adjusted_p: float,
    detectable: float,
    differing: Mapping[str, tuple[Any, Any]],
    unknown: str = "",
) -> Verdict:
    """Put the result of a comparison into words.

    Only folds and seeds are repetitions of a training. One training of each experiment shows how two checkpoints
    differ, and not which recipe is better; nor do trainings that also differ in epochs, crops or data, or whose
    settings are unknown.

    Args:
        names: Names of the experiment and of the baseline.
        deciding: Pooled difference with its interval.
        basis: What the interval is over, see `Verdict`.
        adjusted_p: p-value of the difference, adjusted for the number of comparisons.
        detectable: See `Verdict`.
        differing: Settings that differ, with the value of the baseline and of the experiment.
        unknown: Name of the one whose settings are unknown.
    """
    own, base = names
    span = _span(deciding, basis, adjusted_p)
    is_known = not math.isnan(deciding.low) and not math.isnan(adjusted_p)
    if not is_known:
        text = f"{own} - {base}: {deciding.mean:+.3f} mIoU; too few repetitions for an interval."
    elif not (deciding.excludes_zero and adjusted_p < LEVEL):
        reach = "" if math.isnan(detectable) else f" A difference of {detectable:.3f} would be found in 80 % of cases."
        text = f"{own} and {base} are not distinguishable: {span}.{reach}"
    elif DIGEST in differing:
        more = f", and {_settings(found)}" if (found := _confounded(differing)) else ""
        text = f"{own} and {base} differ: {span}; so do their images or labels{more}, which may explain it."
    elif basis not in {"folds", "seeds"}:
        text = f"These two checkpoints, of {own} and {base}, differ on these images: {span}. One training of each " + (
            "does not show which recipe is better."
        )
    elif differing and set(differing) <= set(SEEDS):
        text = f"{own} and {base} differ: {span}; they are one recipe with two seeds, so this is the effect of chance."
    elif confounded := _confounded(differing):
        text = f"{own} and {base} differ: {span}; they also differ in {_settings(confounded)}, which may explain it."
    elif unknown:
        text = f"{own} and {base} differ: {span}; {unknown} has no readable config.yaml, so its settings are unknown."
    else:
        word = "better" if deciding.mean > 0 else "worse"
        text = f"{own} is {word} than {base}: {span}."
    return Verdict(text, deciding, basis if is_known else "", detectable, dict(differing), names, unknown)


def no_verdict(names: tuple[str, str], num_images: int) -> Verdict:
    """Say that an experiment was evaluated on other truths than the baseline, so that nothing can be compared.

    Args:
        names: Names of the experiment and of the baseline.
        num_images: Number of images whose truth differs.
    """
    text = (
        f"{names[0]} cannot be compared: {num_images} images have other truths than in the baseline. Their "
        "annotations, class_map or eval_transforms.max_size differ."
    )
    return Verdict(text, UNKNOWN, "", math.nan, {}, names)


def stopped_verdict(
    names: tuple[str, str], stopped: str, difference: float, differing: Mapping[str, tuple[Any, Any]]
) -> Verdict:
    """Say how far a comparison came that was stopped early, which tests nothing: bad luck is what stopped it.

    Args:
        names: Names of the experiment and of the baseline.
        stopped: Name of the one that `kfold --cheap` or a search stopped.
        difference: Pooled difference over the folds and epochs so far.
        differing: See `Verdict`.
    """
    text = f"{names[0]} - {names[1]}: {difference:+.3f} mIoU so far; {stopped} was stopped early, so this is no test."
    deciding = Difference(difference, math.nan, math.nan, math.nan)
    return Verdict(text, deciding, "", math.nan, dict(differing), names, is_stopped=True)


def differing_settings(
    base: Mapping[str, Any], own: Mapping[str, Any], digests: tuple[str, str] = ("", "")
) -> dict[str, tuple[Any, Any]]:
    """Return the settings of two configurations that a result depends on and that differ, by dotted key.

    Args:
        base: Resolved configuration of the baseline; empty if unknown.
        own: Resolved configuration of the experiment; empty if unknown.
        digests: Digests of the data of both, see `recipe_differences`.
    """
    if not base or not own:
        base, own = {}, {}
    return {key.replace(".init_args", ""): values for key, values in recipe_differences(base, own, digests).items()}


def p_sentence(p: float) -> str:
    """Format a p-value for a sentence: `p = 0.012`, or `p < 0.001`, since no p-value is 0."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _span(deciding: Difference, basis: str, p: float) -> str:
    return (
        f"{deciding.mean:+.3f} mIoU (95 % over {basis}: {deciding.low:+.3f} to {deciding.high:+.3f}; {p_sentence(p)})"
    )


def _confounded(differing: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that may explain a difference besides what was to be compared."""
    settings = {key: values for key, values in differing.items() if key not in SEEDS}
    found = {key: values for key, values in settings.items() if key.startswith(_CONFOUNDERS)}
    is_question = len(settings) == 1  # what was to be compared is this one setting
    return {key: values for key, values in found.items() if not is_question or key.startswith(_OF_DATA)}


def _settings(differing: Mapping[str, tuple[Any, Any]]) -> str:
    texts = [f"{key} ({_short(own)} and {_short(base)})" for key, (base, own) in differing.items()]
    return ", ".join(texts[:_MAX_NAMED]) + (f" and {len(texts) - _MAX_NAMED} more" if len(texts) > _MAX_NAMED else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 3]}..."
