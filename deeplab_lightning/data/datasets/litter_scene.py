"""Draw litter scenes: objects of the ten recycling classes on textured ground.

Every class has its own outline and surface, and all classes share one distribution of colours, so that a
network must learn shape and texture. Local coordinates u (right) and v (down) run over [-1, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from pycocotools import mask as rle_tools

Array = npt.NDArray[np.float32]
Outline = Callable[[np.random.Generator], npt.NDArray[np.float64]]
Surface = Callable[[np.random.Generator, Array, Array, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class LitterClass:
    """Define the appearance of one class.

    Args:
        name: Class name.
        share: Expected fraction of all objects; the distribution over the classes is long-tailed.
        size: Smallest and largest half of the longer side, as a fraction of the image's side.
        outline: Function that draws one polygon in local coordinates, (P, 2).
        surface: Function from (generator, u, v, base colour) to RGB (h, w, 3) and opacity (h, w), both in 0-1.
    """

    name: str
    share: float
    size: tuple[float, float]
    outline: Outline
    surface: Surface


@dataclass(frozen=True)
class LitterObject:
    """Hold one drawn object.

    Attributes:
        class_index: Index into `LITTER_CLASSES`.
        polygon: Outline in pixels, [x0, y0, x1, y1, ...].
        rle: Compressed RLE of its mask.
    """

    class_index: int
    polygon: list[float]
    rle: dict[str, Any]


def _blob(rng: np.random.Generator, num_points: int, roughness: float) -> npt.NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    radii = 1 - roughness * rng.random(num_points)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii * rng.uniform(0.7, 1)], axis=1)


def _trash_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return _blob(rng, int(rng.integers(11, 16)), 0.55)


def _paper_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    corners = np.array([[-0.75, -1], [0.75, -1], [0.75, 1], [-0.75, 1]])
    return corners + rng.uniform(-0.08, 0.08, corners.shape)


def _pack_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    half = rng.uniform(0.45, 0.55)
    return np.array([[-half, -0.5], [-0.12, -1], [0.12, -1], [half, -0.5], [half, 1], [-half, 1]])


def _can_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    half = rng.uniform(0.48, 0.6)
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    squircle = np.stack(
        [np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.4, np.sign(np.sin(t)) * np.abs(np.sin(t)) ** 0.4], 1
    )
    return squircle * np.array([half, 1.0])


def _bottle(neck: float, shoulder: float, body: float) -> npt.NDArray[np.float64]:
    right = np.array([[neck, -1], [neck, shoulder - 0.3], [body, shoulder], [body, 0.92], [body * 0.8, 1]])
    return np.concatenate([right, right[::-1] * np.array([-1, 1])])


def _glass_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return _bottle(neck=0.13, shoulder=rng.uniform(-0.2, 0.0), body=rng.uniform(0.32, 0.38))


def _plastic_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    body, waist = rng.uniform(0.4, 0.46), rng.uniform(0.26, 0.32)
    right = np.array([[0.15, -1], [0.15, -0.82], [body, -0.45], [body, -0.1], [waist, 0.15], [body, 0.4], [body, 1]])
    return np.concatenate([right, right[::-1] * np.array([-1, 1])])


def _styrofoam_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return _blob(rng, 7, 0.18)


def _bag_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    t = np.linspace(0.15 * np.pi, 0.85 * np.pi, 9)
    belly = np.stack([np.cos(t) * rng.uniform(0.85, 1, 9), np.sin(t) * rng.uniform(0.85, 1, 9)], axis=1)
    ears = np.array(
        [
            [-0.7, -0.1],
            [-0.62, -1],
            [-0.32, -1],
            [-0.28, -0.35],
            [0.28, -0.35],
            [0.32, -1],
            [0.62, -1],
            [0.7, -0.1],
        ]
    )
    return np.concatenate([belly, ears])


def _battery_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    half = rng.uniform(0.3, 0.36)
    right = np.array([[0.14, -1], [0.14, -0.86], [half, -0.86], [half, 1]])
    return np.concatenate([right, right[::-1] * np.array([-1, 1])])


def _shirt_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    sleeve = rng.uniform(-0.15, 0.1)
    right = np.array([[0.2, -0.9], [0.6, -0.8], [1, sleeve - 0.2], [0.75, sleeve], [0.52, -0.3], [0.55, 0.95]])
    return np.concatenate([right, right[::-1] * np.array([-1, 1])])


def _shade(base: Array, light: Array) -> Array:
    return np.asarray(base[None, None] * light[..., None], dtype=np.float32)


def _opaque(u: Array) -> Array:
    return np.ones_like(u)


def _trash_surface(rng: np.random.Generator, u: Array, v: Array, base: Array) -> tuple[Array, Array]:
    """Draw a patchwork of scraps with dark seams."""
    seeds = rng.uniform(-1, 1, (9, 2)).astype(np.float32)
    distance = np.stack([(u - x) ** 2 + (v - y) ** 2 for x, y in seeds])
    nearest = np.partition(distance, 1, axis=0)
    colors = np.clip(base + rng.normal(0, 0.3, (9, 3)), 0.05, 1).astype(np.float32)
    seam = np.where(np.sqrt(nearest[1]) - np.sqrt(nearest[0]) < 0.06, 0.45, 1).astype(np.float32)
    return colors[distance.argmin(0)] * seam[..., None], _opaque(u)


def _paper_surface(rng: np.random.Generator, u: Array, v: Array, base: Array) -> tuple[Array, Array]:
    """Draw lines of text broken into words."""
    rows = rng.uniform(5, 8)
    words = np.sin(u * rng.uniform(9, 14) + 9 * np.floor(v * rows)) > -0.5
    ink = (np.mod(v * rows, 1) < 0.45) & (np.abs(u) < 0.58) & words & (np.abs(v) < 0.85)
    return _shade(base, np.where(ink, 0.45, 1.05).astype(np.float32)), _opaque(u)


def _pack_surface(rng: np.random.Generator, u: Array, v: Array, base: Array) -> tuple[Array, Array]:
    """Draw two flat panels with a roof and a round label."""
    light = np.where(u < rng.uniform(-0.1, 0.15), 1.1, 0.7).astype(np.float32)
    light = np.where(v < -0.5, light * 0.8, light)
    light = np.where(np.abs(v + 0.5) < 0.04, 0.35, light)
    label = (u + 0.1) ** 2 + (v - 0.25) ** 2 < 0.08
    rgb = _shade(base, light)
    rgb[label] = 1 - base
    return rgb, _opaque(u)


def _can_surface(rng: np.random.Generator, u: Array, v: Array, base: Array) -> tuple[Array, Array]:
    """Draw a metal cylinder with sharp highlights along it and bright rims."""
    light = 0.65 + 0.5 * np.cos(rng.uniform(9, 12) * u + rng.uniform(-1, 1)) ** 3
    light = np.where(np.abs(v) > 0.84, 1.3, light)
    light = np.where(np.abs(np.abs(v) - 0.8) < 0.04, 0.35, light)
    return _shade(base, light.astype(np.float32)), _opaque(u)


def _glass_surface(rng: np.random.Generator, u: Array, v: Array, base: Array) -> tuple[Array, Array]:
    """Draw transparent glass with bright edges and one long reflection."""
    edge = np.abs(u) > 0.26
    reflection = np.abs(u + 0.12) < 0.045
    rgb = _shade(base, _opaque(u))
    rgb[reflection] = 1.0
    alpha = np.where(edge, 0.75, 0.3) + np.where(reflection, 0.6, 0)
    return rgb, np.clip(alpha, 0, 1).astype(np.float32)


def _plastic_surface(rng: np.random.Generator, u: Array, v: Array, base: Array) -> tuple[Array, Array]:
    """Draw ribs across the body and a solid cap."""
    light = 0.8 + 0.35 * np.sin(rng.uniform(17, 22) * v + 2 * u**2)
    cap = v < -0.84
    alpha = np.where(cap, 1.0, 0.75)
    return _shade(base, np.where(cap, 0.5, light).astype(np.float32)), alpha.astype(np.float32)


def _styrofoam_surface(rng: np.random.Generator, u: Array, v: Array, base: Array) -> tuple[Array, Array]:
    """Draw beads: light grains with dark gaps."""
    grain = rng.random((u.shape[0] // 3 + 1, u.shape[1] // 3 + 1)).astype(np.float32)
    beads = np.kron(grain, np.ones((3, 3), dtype=np.float32))[: u.shape[0], : u.shape[1]]
    return _shade(base * 0.5 + 0.4, 0.65 + 0.5 * beads), _opaque(u)


def _bag_surface(rng: np.random.Generator, u: Array, v: Array, base: Array) -> tuple[Array, Array]:
    """Draw thin film with creases in all directions."""
    light = np.full_like(u, 0.55)
    for _ in range(5):
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 6)
        along = u * np.cos(angle) + v * np.sin(angle)
        across = v * np.cos(angle) - u * np.sin(angle)
        light += 0.28 * np.maximum(0, 1 - 7 * np.abs(np.sin(2.2 * along + phase + 0.6 * np.sin(3 * across)))).astype(
            np.float32
        )
    return _shade(base, light), np.full_like(u, 0.8)


def _battery_surface(rng: np.random.Generator, u: Array, v: Array, base: Array) -> tuple[Array, Array]:
    """Draw a bright top third and a dark body with a highlight along it."""
    light = np.where(v < -0.3, 1.5, 0.35) * (0.75 + 0.5 * np.exp(-((u + 0.1) ** 2) / 0.01))
    light = np.where(np.abs(v + 0.3) < 0.05, 0.1, light)
    return _shade(base, light.astype(np.float32)), _opaque(u)


def _shirt_surface(rng: np.random.Generator, u: Array, v: Array, base: Array) -> tuple[Array, Array]:
    """Draw woven checks with soft folds."""
    checks = rng.uniform(13, 18)
    weave = 0.18 * (np.sign(np.sin(checks * u)) + np.sign(np.sin(checks * v)))
    folds = 0.15 * np.sin(4 * u + rng.uniform(0, 6) + 2 * v)
    return _shade(base, (0.8 + weave + folds).astype(np.float32)), _opaque(u)


LITTER_CLASSES = (
    LitterClass("general trash", 0.16, (0.09, 0.2), _trash_outline, _trash_surface),
    LitterClass("paper", 0.2, (0.1, 0.2), _paper_outline, _paper_surface),
    LitterClass("paper pack", 0.08, (0.12, 0.2), _pack_outline, _pack_surface),
    LitterClass("metal", 0.1, (0.1, 0.17), _can_outline, _can_surface),
    LitterClass("glass", 0.08, (0.13, 0.22), _glass_outline, _glass_surface),
    LitterClass("plastic", 0.12, (0.13, 0.22), _plastic_outline, _plastic_surface),
    LitterClass("styrofoam", 0.07, (0.09, 0.17), _styrofoam_outline, _styrofoam_surface),
    LitterClass("plastic bag", 0.12, (0.12, 0.24), _bag_outline, _bag_surface),
    LitterClass("battery", 0.03, (0.1, 0.14), _battery_outline, _battery_surface),
    LitterClass("clothing", 0.04, (0.16, 0.26), _shirt_outline, _shirt_surface),
)


def render_scene(rng: np.random.Generator, size: int) -> tuple[npt.NDArray[np.uint8], list[LitterObject]]:
    """Draw one scene.

    Args:
        rng: Source of all randomness of the scene.
        size: Height and width in pixels.

    Returns:
        The image (size, size, 3) uint8 RGB, and the objects from the largest to the smallest. This is the
        order in which they were drawn, so that smaller objects are on top.
    """
    canvas = _ground(rng, size)
    shares = np.array([litter.share for litter in LITTER_CLASSES])
    drafts = []
    for _ in range(int(rng.integers(3, 9))):
        class_index = int(rng.choice(len(LITTER_CLASSES), p=shares / shares.sum()))
        drafts.append(_place(rng, class_index, size))
    drafts = [draft for draft in drafts if rle_tools.area(draft[0].rle) > 0]
    drafts.sort(key=lambda draft: -int(rle_tools.area(draft[0].rle)))
    for litter_object, frame in drafts:
        _draw(rng, canvas, litter_object, frame)
    return _photograph(rng, canvas), [litter_object for litter_object, _ in drafts]


Frame = tuple[float, float, float, float]  # centre x, centre y, scale in pixels, angle in radians


def _place(rng: np.random.Generator, class_index: int, size: int) -> tuple[LitterObject, Frame]:
    """Draw the outline of an object at a random position, scale and angle."""
    litter = LITTER_CLASSES[class_index]
    scale, angle = rng.uniform(*litter.size) * size, rng.uniform(0, 2 * np.pi)
    x, y = rng.uniform(0.05 * size, 0.95 * size, 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = np.clip(litter.outline(rng) @ turn * scale + (x, y), 0, size).round(1)
    polygon = [float(value) for value in points.reshape(-1)]
    rle = rle_tools.merge(rle_tools.frPyObjects([polygon], size, size))
    return LitterObject(class_index, polygon, rle), (x, y, scale, angle)


def _draw(rng: np.random.Generator, canvas: Array, litter_object: LitterObject, frame: Frame) -> None:
    """Draw the surface of an object on the canvas, in place."""
    x, y, scale, angle = frame
    left, top, width, height = (int(value) for value in rle_tools.toBbox(litter_object.rle))
    rows, columns = slice(top, top + height + 1), slice(left, left + width + 1)
    inside = rle_tools.decode(litter_object.rle)[rows, columns].astype(bool)
    down, right = np.mgrid[top : top + inside.shape[0], left : left + inside.shape[1]].astype(np.float32)
    dx, dy = (right - x) / scale, (down - y) / scale
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    base = _color(rng)
    rgb, alpha = LITTER_CLASSES[litter_object.class_index].surface(rng, u, v, base)
    patch = canvas[rows, columns]
    alpha = np.where(inside, alpha, 0)[..., None]
    patch[:] = alpha * np.clip(rgb, 0, 1.2) + (1 - alpha) * patch


def _color(rng: np.random.Generator) -> Array:
    """Draw a colour from the distribution of all classes: any hue, grey to vivid, dark to light."""
    hue, saturation, value = rng.uniform(0, 6), rng.uniform(0.05, 0.75), rng.uniform(0.4, 0.95)
    wheel = np.clip(np.abs(np.mod(hue + np.array([0, 4, 2]), 6) - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - wheel))).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Draw (size, size) noise in 0-1 that varies over size / cells pixels."""
    grid = Image.fromarray(rng.random((cells + 2, cells + 2)).astype(np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _ground(rng: np.random.Generator, size: int) -> Array:
    """Draw asphalt, planks, tiles or grass in any colour."""
    v, u = np.mgrid[0:size, 0:size].astype(np.float32) / size
    light = 0.6 + 0.35 * _smooth_noise(rng, size, int(rng.integers(2, 6)))
    kind = rng.integers(4)
    if kind == 0:
        light += 0.12 * _smooth_noise(rng, size, size // 3) - 0.06
    elif kind == 1:
        angle = rng.uniform(0, np.pi)
        along = (u * np.cos(angle) + v * np.sin(angle)) * rng.uniform(4, 9)
        light *= np.where(np.mod(along, 1) < 0.05, 0.55, 1)
        light += 0.08 * np.sin(40 * along + 8 * _smooth_noise(rng, size, 4))
    elif kind == 2:
        tiles = rng.uniform(3, 7)
        light *= np.where((np.mod(u * tiles, 1) < 0.04) | (np.mod(v * tiles, 1) < 0.04), 0.6, 1)
    else:
        light += 0.35 * (_smooth_noise(rng, size, size // 4) - 0.5) * _smooth_noise(rng, size, size // 12)
    return _shade(_color(rng) * 0.6 + 0.15, light.astype(np.float32))


def _photograph(rng: np.random.Generator, canvas: Array) -> npt.NDArray[np.uint8]:
    """Add uneven light, slight defocus and sensor noise to the canvas."""
    size = canvas.shape[0]
    lit = canvas * (0.65 + 0.55 * _smooth_noise(rng, size, 2))[..., None] * rng.uniform(0.9, 1.1, 3).astype(np.float32)
    image = Image.fromarray((np.clip(lit, 0, 1) * 255).astype(np.uint8))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1))), dtype=np.float32)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(2, 7)
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)
