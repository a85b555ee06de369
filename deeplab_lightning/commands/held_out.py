"""Show the progress of passes over images, most of all over the held-out images of an experiment."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from deeplab_lightning.inference.out_of_fold import HeldOut, OutOfFold

Item = TypeVar("Item")


def tracked(items: Iterable[Item], title: str, count: int) -> Iterable[Item]:
    """Yield items, with a bar on a terminal.

    Args:
        items: The items.
        title: Text before the bar.
        count: Number of the items.
    """
    console = Console(stderr=True)
    return track(items, title, total=count, console=console, disable=not console.is_terminal)


def with_progress(found: OutOfFold, *, tta: str | None = None) -> Iterator[HeldOut]:
    """Yield the predictions of all held-out images, with a bar on a terminal and a line per fold elsewhere.

    Args:
        found: The experiment.
        tta: See `load`.
    """
    predictions = found.predictions(tta=tta)
    if Console(stderr=True).is_terminal:
        yield from tracked(predictions, "Predicting the held-out images", len(found.folds))
        return
    begun: set[int] = set()
    for prediction in predictions:
        if prediction.fold not in begun:
            begun.add(prediction.fold)
            count = sum(fold == prediction.fold for fold in found.folds.values())
            networks = found.networks(prediction.fold)
            print(f"fold {prediction.fold}: {count} images, networks: {networks}", flush=True)
        yield prediction
