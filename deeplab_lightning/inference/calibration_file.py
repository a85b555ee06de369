"""Write and read a temperature with the combination of networks and views that it was fitted on."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.inference import Views
from deeplab_lightning.inference.calibration import Calibration, Reliability
from deeplab_lightning.metrics.calibration import NUM_BINS
from deeplab_lightning.tables import or_null


class Averaged(NamedTuple):
    """Hold what is averaged into the probabilities that a temperature scales.

    Attributes:
        networks: Number of networks.
        weights: Their weights, the smallest of which is 1; None for equal ones.
        tta: Views of each image, as `Views.option` writes them; None for the image itself.
    """

    networks: int = 1
    weights: tuple[float, ...] | None = None
    tta: str | None = None

    @classmethod
    def of(cls, networks: int, weights: Sequence[float] | None, views: Views) -> "Averaged":
        """Describe networks with weights in any unit, None for equal ones."""
        smallest = min(weights or (1.0,))
        scaled = tuple(round(weight / smallest, 4) for weight in weights or ()) if smallest > 0 else ()
        return cls(networks, scaled if len(set(scaled)) > 1 else None, views.option)

    def __str__(self) -> str:
        weights = f" with weights {', '.join(f'{weight:g}' for weight in self.weights)}" if self.weights else ""
        views = f" over the views {self.tta}" if self.tta else ""
        return f"{self.networks} network{'s' * (self.networks > 1)}{weights}{views}"


def calibration_document(
    result: Calibration, names: Sequence[str], averaged: Averaged, *, num_images: int, num_pixels: int
) -> dict[str, Any]:
    """Return the content of `calibration.json`.

    Args:
        result: The temperature and what it brings.
        names: Class names.
        averaged: What the temperature was fitted on.
        num_images: Number of images.
        num_pixels: Number of their pixels that were used.
    """

    def figures(part: Reliability) -> dict[str, Any]:
        per_class = {name: or_null(value) for name, value in zip(names, part.class_ece, strict=True)}
        return {"ece": or_null(part.ece), "nll": or_null(part.nll), "class_ece": per_class}

    return {
        "temperature": result.temperature,
        "cross_fitted": {
            "temperatures": [round(value, 6) for value in result.temperatures],
            "before": figures(result.before),
            "after": figures(result.after),
        },
        "num_images": num_images,
        "num_pixels": num_pixels,
        "num_bins": NUM_BINS,
        **averaged._asdict(),
    }


def read_temperature(given: str) -> float:
    """Read a temperature: a number, or a file that `deeplab calibrate`, `validate` or `test` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If the file holds no temperature.
        ValueError: If the number is not positive and finite.
    """
    try:
        value = float(given)
    except ValueError:
        return _read(Path(given))[0]
    if not 0 < value < math.inf:
        raise UserError(f"--temperature must be a positive number or a calibration.json, got {given}.")
    return value


def check_temperature(given: str, used: Averaged) -> None:
    """Refuse a file whose temperature was fitted on another average; a number is left to the user.

    Args:
        given: The number or the file.
        used: What is averaged now.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If the file holds no temperature.
        UserError: If the averages differ.
    """
    try:
        float(given)
    except ValueError:
        value, own = _read(Path(given))
        if own != used:
            raise UserError(
                f"--temperature {given} was fitted on {own}, and not on {used} as here, whose confidence differs: fit "
                "theirs by `deeplab test` with these options and --calibration FILE, or give the number itself, "
                f"--temperature {value:.4g}."
            ) from None


def _read(path: Path) -> tuple[float, Averaged]:
    """Read the temperature of a file, and what it was fitted on."""
    if not path.is_file():
        raise MissingFileError(f"--temperature must be a positive number or a file; no such file: {path.absolute()}.")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        value, weights = float(content["temperature"]), content.get("weights")
        averaged = Averaged(
            int(content.get("networks", 1)), None if weights is None else tuple(map(float, weights)), content.get("tta")
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: is damaged, or not written by `deeplab calibrate`.") from error
    if not 0 < value < math.inf:
        raise DataError(f"{path}: holds the temperature {value}, which is not positive.")
    return value, averaged
