"""Drawing of masks: colours, overlays, panels, the confusion matrix, the balance of folds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from deeplab_lightning.data.classes import IGNORE_INDEX, ClassTable
from deeplab_lightning.data.folds.balance import Balance

Pixels = npt.NDArray[np.uint8]
_LEGEND_ROW = 18  # pixels


def colorize(mask: Pixels, classes: ClassTable) -> Pixels:
    """(H, W) train ids -> (H, W, 3) RGB of the classes' colours; ignored pixels are light grey."""
    palette = np.asarray(classes.flat_palette(), dtype=np.uint8).reshape(256, 3)
    return palette[mask]


def overlay(image: Pixels, mask: Pixels, classes: ClassTable, *, opacity: float = 0.55) -> Pixels:
    """The classes' colours laid over a picture. A background class and ignored pixels stay as they are.

    Args:
        image: (H, W, 3) RGB.
        mask: (H, W) train ids.
        classes: The class table.
        opacity: Share of the colour, a fraction.
    """
    is_shown = mask != IGNORE_INDEX
    if classes.names[0] == "background":
        is_shown &= mask != 0
    mixed = image * (1 - opacity) + colorize(mask, classes) * opacity
    return np.where(is_shown[..., None], mixed, image).astype(np.uint8)


def palette_image(mask: Pixels, classes: ClassTable) -> Image.Image:
    """A palette picture whose values are train ids and which looks coloured everywhere."""
    picture = Image.fromarray(mask)  # mode L
    picture.putpalette(classes.flat_palette())
    return picture


def panel(rows: Sequence[tuple[Pixels, Pixels, Pixels]], classes: ClassTable, *, width: int = 300) -> Image.Image:
    """Rows of picture, truth and prediction, with a legend of the classes that appear.

    Args:
        rows: (H, W, 3) picture, (H, W) truth and (H, W) prediction of each row.
        classes: The class table.
        width: Width of one picture in pixels.
    """
    strips = []
    for image, truth, prediction in rows:
        triple = [image, colorize(truth, classes), overlay(image, prediction, classes)]
        height = max(1, round(width * image.shape[0] / image.shape[1]))
        strips.append(np.concatenate([_resize(part, width, height) for part in triple], axis=1))
    present = sorted({int(v) for _, *masks in rows for mask in masks for v in np.unique(mask)} - {IGNORE_INDEX})
    columns = max(1, 3 * width // 150)
    legend = Image.new("RGB", (3 * width, _LEGEND_ROW * (1 + -(-len(present) // columns))), "white")
    draw = ImageDraw.Draw(legend)
    for column, title in enumerate(("picture", "truth", "prediction")):
        draw.text((column * width + 4, 3), title, fill="black")
    for place, index in enumerate(present):
        x, y = place % columns * 150, _LEGEND_ROW * (1 + place // columns)
        draw.rectangle((x + 4, y + 3, x + 16, y + 14), fill=tuple(classes.colors[index]), outline="black")  # type: ignore[index]
        draw.text((x + 22, y + 3), classes.names[index], fill="black")
    return Image.fromarray(np.concatenate([np.asarray(legend), *strips]))


def draw_confusion_matrix(matrix: npt.NDArray[Any], names: Sequence[str], path: Path) -> None:
    """Write the row-normalised confusion matrix as a PNG: of each true class, where its pixels went."""
    from matplotlib.figure import Figure  # slow to import, and only needed once a run

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.42 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="prediction", ylabel="truth", title="share of each true class")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    if len(names) <= 30:
        for row, column in np.argwhere(shares >= 0.005):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", color=color, size=7)
    figure.colorbar(picture, shrink=0.8)
    figure.savefig(path, dpi=110)


def draw_balance(balances: Mapping[str, Balance], classes: Sequence[str], path: Path) -> None:
    """Write the signed deviations of each class and fold as heat maps: a pair of maps per method.

    Args:
        balances: Method -> its figures, in the order of drawing.
        classes: Names of the K foreground classes.
        path: The PNG file.
    """
    from matplotlib.figure import Figure

    n_folds = len(next(iter(balances.values())).sizes)
    width = 2.0 + 2 * len(balances) * (0.6 + 0.22 * n_folds)
    figure = Figure(figsize=(width, 1.6 + 0.17 * len(classes)), layout="constrained")
    panels = figure.subplots(1, 2 * len(balances), sharey=True, squeeze=False)[0]
    measures = [(f"{method}\n{name}", sums) for method, b in balances.items() for name, sums in _sums(b)]
    for axes, (title, sums) in zip(panels, measures, strict=True):
        share = sums.mean(axis=0)
        deviation = np.divide(sums - share, share, out=np.full_like(sums, np.nan), where=share > 0)  # (n_folds, K)
        picture = axes.imshow(deviation.T, vmin=-0.5, vmax=0.5, cmap="RdBu_r", aspect="auto", interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_xticks(range(n_folds), range(n_folds), fontsize=7)
        axes.set_xlabel("fold", fontsize=7)
        axes.set_facecolor("0.9")  # absent classes
    panels[0].set_yticks(range(len(classes)), classes, fontsize=7)
    bar = figure.colorbar(picture, ax=list(panels), shrink=0.8, extend="both", ticks=[-0.5, -0.25, 0, 0.25, 0.5])
    bar.ax.set_yticklabels(["-50 %", "-25 %", "even", "+25 %", "+50 %"], fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _sums(balance: Balance) -> tuple[tuple[str, npt.NDArray[Any]], ...]:
    return ("objects", balance.objects), ("area", balance.pixels)


def _resize(pixels: Pixels, width: int, height: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
