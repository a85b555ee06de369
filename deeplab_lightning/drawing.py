"""Draw masks, overlays, panels and charts of a data set and its predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from deeplab_lightning.data.classes import IGNORE_INDEX, ClassTable

Pixels = npt.NDArray[np.uint8]
_LEGEND_ROW = 18  # pixels
_BAND = 256  # rows that are drawn at once


def viewable(pixels: Pixels) -> Pixels:
    """Return an image to look at, (H, W, 3): grey for one channel, the first three of more.

    Args:
        pixels: (H, W, C) uint8.
    """
    channels = pixels.shape[-1]
    if channels == 1:
        return np.repeat(pixels, 3, axis=-1)
    if channels == 2:
        return np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=-1)
    return pixels[..., :3]


def colorize(mask: Pixels, class_table: ClassTable) -> Pixels:
    """Colour a mask with the colours of its classes.

    Args:
        mask: (H, W) train ids.
        class_table: The class table.

    Returns:
        (H, W, 3) RGB; ignored pixels are light grey.
    """
    palette = np.asarray(class_table.flat_palette(), dtype=np.uint8).reshape(256, 3)
    return palette[mask]


def overlay(image: Pixels, mask: Pixels, class_table: ClassTable, *, opacity: float = 0.55) -> Pixels:
    """Blend the colours of a mask into an image.

    Pixels of a class `background` at index 0 and ignored pixels stay unchanged.

    Args:
        image: (H, W, 3) RGB.
        mask: (H, W) train ids.
        class_table: The class table.
        opacity: Weight of the class colour, in [0, 1].

    Returns:
        (H, W, 3) RGB.
    """
    drawn = np.empty_like(image)
    for top in range(0, len(mask), _BAND):  # the sum is of 8 bytes per value
        part, labels = image[top : top + _BAND], mask[top : top + _BAND]
        is_colored = labels != IGNORE_INDEX
        if class_table.names[0] == "background":
            is_colored &= labels != 0
        blended = part * (1 - opacity) + colorize(labels, class_table) * opacity
        drawn[top : top + _BAND] = np.where(is_colored[..., None], blended, part)
    return drawn


def palette_image(mask: Pixels, class_table: ClassTable) -> Image.Image:
    """Return a palette image whose values are train ids and whose colours are those of the classes.

    Args:
        mask: (H, W) train ids.
        class_table: The class table.
    """
    image = Image.fromarray(mask)  # mode L
    image.putpalette(class_table.flat_palette())
    return image


def panel(rows: Sequence[tuple[Pixels, Pixels, Pixels]], class_table: ClassTable, *, width: int = 300) -> Image.Image:
    """Draw rows of image, truth and prediction below a legend of the classes that appear.

    Args:
        rows: (H, W, 3) image, (H, W) truth and (H, W) prediction of each row.
        class_table: The class table.
        width: Width of each of the three columns in pixels.
    """
    strips = []
    for image, truth, prediction in rows:
        triple = [image, colorize(truth, class_table), overlay(image, prediction, class_table)]
        height = max(1, round(width * image.shape[0] / image.shape[1]))
        strips.append(np.concatenate([_resize(part, width, height) for part in triple], axis=1))
    present = sorted({int(v) for _, *masks in rows for mask in masks for v in np.unique(mask)} - {IGNORE_INDEX})
    return Image.fromarray(np.concatenate([np.asarray(_legend(present, class_table, width)), *strips]))


def _legend(present: Sequence[int], class_table: ClassTable, width: int) -> Image.Image:
    """Draw the column titles of a panel, and the colours and names of the classes with these indices."""
    columns = max(1, 3 * width // 150)
    legend = Image.new("RGB", (3 * width, _LEGEND_ROW * (1 + -(-len(present) // columns))), "white")
    draw = ImageDraw.Draw(legend)
    for column, title in enumerate(("image", "truth", "prediction")):
        draw.text((column * width + 4, 3), title, fill="black")
    for place, index in enumerate(present):
        x, y = place % columns * 150, _LEGEND_ROW * (1 + place // columns)
        color = tuple(class_table.colors[index])  # type: ignore[index]
        draw.rectangle((x + 4, y + 3, x + 16, y + 14), fill=color, outline="black")
        draw.text((x + 22, y + 3), class_table.names[index], fill="black")
    return legend


_MAX_DRAWN = 60  # classes of a confusion matrix; the picture of 253 would take 6 GB
_MAX_LABEL = 40  # characters of a class name beside it


def draw_confusion_matrix(matrix: npt.NDArray[Any], class_names: Sequence[str], path: Path) -> None:
    """Write the row-normalised confusion matrix as a PNG: the share of each true class by predicted class.

    Of more than 60 classes, those with the largest share of wrong pixels are shown.

    Args:
        matrix: (K, K) pixel counts, rows truth, columns prediction.
        class_names: K names.
        path: The PNG file.
    """
    from matplotlib.figure import Figure  # slow to import and needed only once per run

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    title = "share of each true class"
    if len(class_names) > _MAX_DRAWN:
        is_shown = matrix.sum(axis=1) > 0
        order = np.lexsort((np.arange(len(class_names)), np.where(is_shown, np.diag(shares), np.inf)))[:_MAX_DRAWN]
        chosen = np.sort(order)
        shares, class_names = shares[np.ix_(chosen, chosen)], [class_names[index] for index in chosen]
        title = f"share of each true class, the {_MAX_DRAWN} worst of {len(matrix)}"
    class_names = [_shortened(name) for name in class_names]
    side = 2.5 + 0.42 * len(class_names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    heat_map = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="prediction", ylabel="truth", title=title)
    axes.set_xticks(range(len(class_names)), class_names, rotation=90)
    axes.set_yticks(range(len(class_names)), class_names)
    if len(class_names) <= 30:
        for row, column in np.argwhere(shares >= 0.005):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", color=color, size=7)
    figure.colorbar(heat_map, shrink=0.8)
    figure.savefig(path, dpi=110)


def draw_learning_rates(
    rates: Sequence[float], losses: Sequence[float], means: Sequence[float], suggested: float, file: IO[bytes]
) -> None:
    """Write the losses of a sweep over learning rates as a PNG.

    Args:
        rates: Learning rate of each step.
        losses: Loss of each step.
        means: Smoothed losses.
        suggested: Learning rate to mark.
        file: The open file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="0.75", linewidth=0.8, label="loss of a step")
    axes.plot(rates, means, color="tab:blue", label="smoothed")
    axes.axvline(suggested, color="tab:red", linestyle="--", label=f"suggested: {suggested:.2g}")
    axes.set(xscale="log", xlabel="learning rate of the backbone", ylabel="training loss")
    low, high = min(means), max(means[: max(1, len(means) // 2)])
    axes.set_ylim(low - 0.1 * (high - low + 1e-9), high + 0.5 * (high - low + 1e-9))
    axes.legend()
    figure.savefig(file, format="png", dpi=110)


def draw_balance(sums: Mapping[str, Mapping[str, npt.NDArray[Any]]], class_names: Sequence[str], path: Path) -> None:
    """Write heat maps of the signed deviations from the even share, one per method and quantity.

    Args:
        sums: Method -> quantity, such as `objects` or `area` -> (n_folds, K) sums over the images of each fold.
        class_names: Names of the K foreground classes.
        path: The PNG file.
    """
    from matplotlib.figure import Figure

    maps = [(f"{method}\n{quantity}", values) for method, own in sums.items() for quantity, values in own.items()]
    n_folds = len(maps[0][1])
    width = 2.0 + len(maps) * (0.6 + 0.22 * n_folds)
    figure = Figure(figsize=(width, 1.6 + 0.17 * len(class_names)), layout="constrained")
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(panels, maps, strict=True):
        share = values.mean(axis=0)
        deviation = np.divide(values - share, share, out=np.full_like(values, np.nan), where=share > 0)  # (n_folds, K)
        heat_map = axes.imshow(deviation.T, vmin=-0.5, vmax=0.5, cmap="RdBu_r", aspect="auto", interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_xticks(range(n_folds), range(n_folds), fontsize=7)
        axes.set_xlabel("fold", fontsize=7)
        axes.set_facecolor("0.9")  # shown where a class is absent
    panels[0].set_yticks(range(len(class_names)), class_names, fontsize=7)
    bar = figure.colorbar(heat_map, ax=list(panels), shrink=0.8, extend="both", ticks=[-0.5, -0.25, 0, 0.25, 0.5])
    bar.ax.set_yticklabels(["-50 %", "-25 %", "even", "+25 %", "+50 %"], fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


_MAX_RELIABILITY = 30  # classes of a reliability diagram, those that the probabilities miss most


def draw_reliability(
    tops: Mapping[str, npt.NDArray[Any]], classes: npt.NDArray[Any], class_names: Sequence[str], file: IO[bytes]
) -> None:
    """Write a reliability diagram as a PNG: the share of right pixels by confidence, and of each class.

    Args:
        tops: Title -> (3, bins) number of pixels, sum of their confidences, number of right pixels.
        classes: (3, K, bins) the same of the probability of each class.
        class_names: K names.
        file: The open file.
    """
    from matplotlib.figure import Figure

    gaps = np.abs(classes[1] - classes[2]).sum(axis=1) / np.maximum(classes[0].sum(axis=1), 1)  # (K,)
    order = np.sort(np.argsort(-gaps, kind="stable")[:_MAX_RELIABILITY])
    num_bins = classes.shape[-1]
    figure = Figure(figsize=(10.5, max(4.2, 1.6 + 0.22 * len(order))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    left.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for (title, (count, confidence, is_right)), style in zip(tops.items(), ("o-", "s-"), strict=False):
        has_pixels = count > 0
        error = np.abs(confidence - is_right).sum() / max(count.sum(), 1)
        x, y = confidence[has_pixels] / count[has_pixels], is_right[has_pixels] / count[has_pixels]
        left.plot(x, y, style, markersize=4, label=f"{title}: calibration error {error:.3f}")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right pixels", aspect="equal")
    left.legend(loc="upper left", fontsize=8)
    count, probability, labelled = classes[:, order]
    gap = np.divide(labelled - probability, count, out=np.full_like(count, np.nan), where=count > 0)
    heat_map = right.imshow(gap, vmin=-0.3, vmax=0.3, cmap="RdBu", aspect="auto", extent=(0, 1, len(order) - 0.5, -0.5))
    right.set_facecolor("0.9")  # shown where no pixel has such a probability
    right.set_yticks(range(len(order)), [_shortened(class_names[index]) for index in order], fontsize=8)
    right.set_xlabel(f"probability of the class, {num_bins} bins")
    right.set_title("share of pixels with this label, minus probability", fontsize=9)
    figure.colorbar(heat_map, ax=right, extend="both", shrink=0.8)
    figure.savefig(file, format="png", dpi=120)


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_LABEL else f"{name[: _MAX_LABEL - 3]}..."


def _resize(pixels: Pixels, width: int, height: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
