"""Show the progress of a pass over the held-out images of an experiment."""

from collections.abc import Iterator

from rich.console import Console
from rich.progress import track

from deeplab_lightning.inference.out_of_fold import HeldOut, OutOfFold


def with_progress(found: OutOfFold) -> Iterator[HeldOut]:
    """Yield the predictions of all held-out images, with a bar on a terminal and a line per fold elsewhere.

    Args:
        found: The experiment.
    """
    console = Console(stderr=True)
    predictions = found.predictions()
    if console.is_terminal:
        yield from track(predictions, "Predicting the held-out images", total=len(found.folds), console=console)
        return
    begun: set[int] = set()
    for prediction in predictions:
        if prediction.fold not in begun:
            begun.add(prediction.fold)
            count = sum(fold == prediction.fold for fold in found.folds.values())
            networks = found.networks(prediction.fold)
            print(f"fold {prediction.fold}: {count} images, networks: {networks}", flush=True)
        yield prediction
