"""Draw the axes of charts as SVG with the colours of the page, so that they follow its light or dark theme."""

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 60, 16, 12, 40  # pixels of the drawing
Scale = Callable[[float], float]
_START, _END = 8, 15  # characters of a long label that are kept; names of experiments differ at their end most often


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


def scale(values: Sequence[float], start: float, stop: float, *, pad: float = 0.06) -> Scale:
    """Return the function from values to pixels.

    Args:
        values: Values that must fit, at least one.
        start: Pixel of the lower end.
        stop: Pixel of the upper end.
        pad: Margin at both ends, as a fraction of the range.
    """
    low, high = min(values), max(values)
    margin = (high - low) * pad if high > low else max(abs(high), 1.0) * 0.1
    low, high = low - margin, high + margin

    def scaled(value: float) -> float:
        return start + (value - low) / max(high - low, 1e-12) * (stop - start)

    return scaled


def x_axis(x: Scale, values: Sequence[float], top: float, bottom: float, title: str, *, middle: float) -> str:
    """Draw vertical grid lines with their values, and the title of the axis."""
    parts = []
    is_whole = all(float(value).is_integer() for value in values)  # of epochs, for example: no half ones
    for tick in ticks(min(values), max(values), 6):
        if is_whole and not float(tick).is_integer():
            continue
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}" class="grid"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle" class="muted">{tick:g}</text>')
    parts.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle" class="muted">{escape(title)}</text>')
    return "".join(parts)


def y_axis(y: Scale, values: Sequence[float], title: str) -> str:
    """Draw horizontal grid lines with their values, and the title of the axis."""
    parts = []
    for tick in ticks(min(values), max(values)):
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"'
        parts.append(f'<line {ends} class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end" class="muted">{tick:g}</text>')
    parts.append(
        f'<text transform="translate(14 150) rotate(-90)" text-anchor="middle" class="muted">{escape(title)}</text>'
    )
    return "".join(parts)


def svg(height: float, parts: Sequence[str], title: str) -> str:
    """Return a drawing of WIDTH x `height` pixels, with a title for screen readers."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def series_color(index: int) -> str:
    """Return the CSS colour of an experiment by its place."""
    return f"var(--series-{index % 8})"


def shortened(label: str) -> str:
    """Shorten a long label in its middle, since names differ at their ends."""
    return label if len(label) <= _START + _END + 1 else f"{label[:_START]}…{label[-_END:]}"


def text(label: str, place: str) -> str:
    """Draw a label, shortened if it is long; the whole one is shown on hover.

    Args:
        label: The label.
        place: Attributes of the text.
    """
    return f"<text {place}>{escape(shortened(label))}<title>{escape(label)}</title></text>"
