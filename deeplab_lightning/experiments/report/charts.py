"""Draw charts as SVG with the colours of the page, so that they follow its light or dark theme."""

import math
from collections.abc import Callable, Sequence
from html import escape

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 60, 16, 12, 40  # pixels of the drawing
Point = tuple[float, float]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Choose round values for an axis.

    Args:
        low: Lower end of the axis.
        high: Upper end of the axis.
        count: Approximate number of steps.

    Returns:
        The values in [low, high].
    """
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(first * step + index * step, 10) for index in range(int((high - first * step) / step + 1e-9) + 1)]


def intervals(rows: Sequence[tuple[str, float, float, float, Sequence[float]]], axis: str) -> str:
    """Draw one line per row, with the value as a dot, its interval as a bar, and further values as small dots.

    Args:
        rows: Label, value, low, high and further values of each row; low and high are nan without an interval.
        axis: Title of the x axis.
    """
    left, row_height = 170, 30
    height = _TOP + row_height * len(rows) + _BOTTOM
    values = [v for _, *three, more in rows for v in (*three, *more) if not math.isnan(v)]
    x = _scale(values, left, _WIDTH - _RIGHT)
    parts = [_x_axis(x, values, _TOP, height - _BOTTOM, axis)]
    for index, (label, value, low, high, more) in enumerate(rows):
        y = _TOP + row_height * (index + 0.5)
        color = f"var(--series-{index % 8})"
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(_shortened(label))}</text>')
        parts += [f'<circle cx="{x(v):.1f}" cy="{y + 8:.1f}" r="2.5" class="muted-fill"/>' for v in more]
        if not math.isnan(low):
            line = f'x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
            parts.append(f'<line {line} style="stroke:{color}" stroke-width="3"/>')
        interval = "" if math.isnan(low) else f" ({low:.3f} to {high:.3f})"
        text = escape(f"{label}: {value:.3f}{interval}")
        parts.append(
            f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="6" style="fill:{color}"><title>{text}</title></circle>'
        )
    return _svg(height, parts, axis)


def lines(series: Sequence[tuple[str, Sequence[Point]]], x_axis: str, y_axis: str) -> str:
    """Draw one curve per experiment; an empty text if there are no points.

    Args:
        series: Label and points of each experiment.
        x_axis: Title of the x axis.
        y_axis: Title of the y axis.
    """
    height = 300
    xs = [px for _, points in series for px, _ in points]
    ys = [py for _, points in series for _, py in points]
    if not xs:
        return ""
    x, y = _scale(xs, _LEFT, _WIDTH - _RIGHT, pad=0), _scale(ys, height - _BOTTOM, _TOP)
    parts = [_x_axis(x, xs, _TOP, height - _BOTTOM, x_axis), _y_axis(y, ys, y_axis)]
    for index, (label, points) in enumerate(series):
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in points)
        color = f"var(--series-{index % 8})"
        parts.append(
            f'<polyline points="{path}" fill="none" style="stroke:{color}" stroke-width="2">'
            f"<title>{escape(label)}</title></polyline>"
        )
    return _svg(height, parts, f"{y_axis} over {x_axis}")


def scatter(points: Sequence[tuple[str, float, float]], x_axis: str, y_axis: str) -> str:
    """Draw one labelled dot per experiment; an empty text if there are none.

    Args:
        points: Label, x and y of each experiment.
        x_axis: Title of the x axis.
        y_axis: Title of the y axis.
    """
    height = 320
    if not points:
        return ""
    xs, ys = [px for _, px, _ in points], [py for _, _, py in points]
    x, y = _scale(xs, _LEFT, _WIDTH - 2 * _RIGHT), _scale(ys, height - _BOTTOM, _TOP)
    parts = [_x_axis(x, xs, _TOP, height - _BOTTOM, x_axis), _y_axis(y, ys, y_axis)]
    for index, (label, px, py) in enumerate(points):
        color = f"var(--series-{index % 8})"
        parts.append(f'<circle cx="{x(px):.1f}" cy="{y(py):.1f}" r="7" style="fill:{color}"/>')
        shift, anchor = (11, "start") if x(px) < 2 / 3 * _WIDTH else (-11, "end")  # to stay inside the drawing
        place = f'x="{x(px) + shift:.1f}" y="{y(py) + 4:.1f}" text-anchor="{anchor}"'
        parts.append(f"<text {place}>{escape(_shortened(label))}</text>")
    return _svg(height, parts, f"{y_axis} against {x_axis}")


def _scale(values: Sequence[float], start: float, stop: float, *, pad: float = 0.06) -> Callable[[float], float]:
    low, high = min(values), max(values)
    margin = (high - low) * pad if high > low else max(abs(high), 1.0) * 0.1
    low, high = low - margin, high + margin

    def scaled(value: float) -> float:
        return start + (value - low) / max(high - low, 1e-12) * (stop - start)

    return scaled


def _x_axis(x: Callable[[float], float], values: Sequence[float], top: float, bottom: float, title: str) -> str:
    parts = []
    is_whole = all(float(value).is_integer() for value in values)  # of epochs, for example: no half ones
    for tick in ticks(min(values), max(values), 6):
        if is_whole and not float(tick).is_integer():
            continue
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}" class="grid"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle" class="muted">{tick:g}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{bottom + 34}" text-anchor="middle" class="muted">{escape(title)}</text>')
    return "".join(parts)


def _y_axis(y: Callable[[float], float], values: Sequence[float], title: str) -> str:
    parts = []
    for tick in ticks(min(values), max(values)):
        ends = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"'
        parts.append(f'<line {ends} class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end" class="muted">{tick:g}</text>')
    parts.append(
        f'<text transform="translate(14 150) rotate(-90)" text-anchor="middle" class="muted">{escape(title)}</text>'
    )
    return "".join(parts)


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(title, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _shortened(label: str) -> str:
    return label if len(label) <= 24 else f"...{label[-21:]}"
