"""Draw the charts of the page: intervals, curves with bands, and points."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from deeplab_lightning.experiments.report.axes import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    scale,
    series_color,
    svg,
    text,
    x_axis,
    y_axis,
)

_LABELS = 180  # pixels for the labels beside intervals


class Interval(NamedTuple):
    """Hold one row of a chart of intervals.

    Attributes:
        label: Name of the row.
        value: The figure.
        low: Lower end of its interval; nan without one.
        high: Upper end.
        dots: Further values, drawn small.
        color: Place of the experiment, which decides the colour.
        note: What is shown on hover after the figures.
    """

    label: str
    value: float
    low: float
    high: float
    dots: Sequence[float]
    color: int
    note: str = ""


class Point(NamedTuple):
    """Hold one epoch of a curve: the mean over the trainings and their range."""

    x: float
    mean: float
    low: float
    high: float


class Curve(NamedTuple):
    """Hold one curve with its band.

    Attributes:
        label: Name of the curve.
        points: Its points by epoch.
        color: Place of the experiment, which decides the colour.
        is_dashed: Whether the line is dashed.
    """

    label: str
    points: Sequence[Point]
    color: int
    is_dashed: bool = False


def intervals(rows: Sequence[Interval], axis: str, *, is_difference: bool = False) -> str:
    """Draw one line per row, with the value as a dot, its interval as a bar, and further values as small dots.

    Args:
        rows: The rows; an empty text without any.
        axis: Title of the x axis.
        is_difference: Whether 0 is marked, and figures have their sign.
    """
    values = [v for row in rows for v in (row.value, row.low, row.high, *row.dots) if not math.isnan(v)]
    if not values:
        return ""
    values += [0.0] if is_difference else []
    row_height = 30
    bottom = TOP + row_height * len(rows)
    x = scale(values, _LABELS, WIDTH - RIGHT)
    parts = [x_axis(x, values, TOP, bottom, axis, middle=(_LABELS + WIDTH - RIGHT) / 2)]
    if is_difference:
        parts.append(f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{bottom}" class="zero"/>')
    form = "+.3f" if is_difference else ".3f"
    for index, row in enumerate(rows):
        if math.isnan(row.value):
            continue
        y = TOP + row_height * (index + 0.5)
        color = series_color(row.color)
        parts.append(text(row.label, f'x="{_LABELS - 10}" y="{y + 4:.1f}" text-anchor="end"'))
        parts += [f'<circle cx="{x(v):.1f}" cy="{y + 8:.1f}" r="2.5" class="muted-fill"/>' for v in row.dots]
        if not math.isnan(row.low):
            line = f'x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
            parts.append(f'<line {line} style="stroke:{color}" stroke-width="3"/>')
        span = "" if math.isnan(row.low) else f" (95 %: {row.low:{form}} to {row.high:{form}})"
        shown = escape(f"{row.label}: {row.value:{form}}{span}{row.note}")
        dot = f'<circle cx="{x(row.value):.1f}" cy="{y:.1f}" r="6" style="fill:{color}">'
        parts.append(f"{dot}<title>{shown}</title></circle>")
    return svg(bottom + BOTTOM, parts, axis)


def curves(series: Sequence[Curve], x_title: str, y_title: str) -> str:
    """Draw curves with the range of their trainings as a band; an empty text if there are no points.

    Args:
        series: The curves.
        x_title: Title of the x axis.
        y_title: Title of the y axis.
    """
    height = 300
    points = [point for curve in series for point in curve.points]
    if not points:
        return ""
    xs, ys = [point.x for point in points], [v for point in points for v in (point.low, point.high)]
    x, y = scale(xs, LEFT, WIDTH - RIGHT, pad=0), scale(ys, height - BOTTOM, TOP)
    parts = [
        x_axis(x, xs, TOP, height - BOTTOM, x_title, middle=(LEFT + WIDTH - RIGHT) / 2),
        y_axis(y, ys, y_title),
    ]
    for curve in series:
        color = series_color(curve.color)
        if any(point.high > point.low for point in curve.points):
            edge = [(p.x, p.high) for p in curve.points] + [(p.x, p.low) for p in reversed(curve.points)]
            corners = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in edge)
            parts.append(f'<polygon points="{corners}" style="fill:{color}" class="band"/>')
    for curve in series:
        path = " ".join(f"{x(point.x):.1f},{y(point.mean):.1f}" for point in curve.points)
        dashes = ' stroke-dasharray="5 4"' if curve.is_dashed else ""
        style = f'fill="none" style="stroke:{series_color(curve.color)}" stroke-width="2"{dashes}'
        last = f": {curve.points[-1].mean:.3f} at the end" if curve.points else ""
        title = escape(f"{curve.label}{last}")
        parts.append(f'<polyline points="{path}" {style}><title>{title}</title></polyline>')
        if len(curve.points) == 1:  # a line of one point is not seen
            (point,) = curve.points
            style = f'style="fill:{series_color(curve.color)}"'
            parts.append(f'<circle cx="{x(point.x):.1f}" cy="{y(point.mean):.1f}" r="4" {style}/>')
    return svg(height, parts, f"{y_title} over {x_title}")


def scatter(points: Sequence[tuple[str, float, float]], x_title: str, y_title: str) -> str:
    """Draw one labelled dot per experiment; an empty text if there are none.

    Args:
        points: Label, x and y of each experiment.
        x_title: Title of the x axis.
        y_title: Title of the y axis.
    """
    height = 320
    if not points:
        return ""
    xs, ys = [px for _, px, _ in points], [py for _, _, py in points]
    x, y = scale(xs, LEFT, WIDTH - 2 * RIGHT), scale(ys, height - BOTTOM, TOP)
    parts = [
        x_axis(x, xs, TOP, height - BOTTOM, x_title, middle=(LEFT + WIDTH - RIGHT) / 2),
        y_axis(y, ys, y_title),
    ]
    for index, (label, px, py) in enumerate(points):
        parts.append(f'<circle cx="{x(px):.1f}" cy="{y(py):.1f}" r="7" style="fill:{series_color(index)}"/>')
        shift, anchor = (11, "start") if x(px) < 2 / 3 * WIDTH else (-11, "end")  # to stay inside the drawing
        parts.append(text(label, f'x="{x(px) + shift:.1f}" y="{y(py) + 4:.1f}" text-anchor="{anchor}"'))
    return svg(height, parts, f"{y_title} against {x_title}")
