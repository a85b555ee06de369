"""Find out which TIFF files hold more than the grey or colour image that Pillow reads."""

import logging

from PIL import Image

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES, _SUBFILE_TYPE = (
    256,
    257,
    258,
    262,
    277,
    338,
    254,
)  # tags
_BYTE = 8  # bits
_ALPHA = {1, 2}  # kinds of extra samples
# Photometric interpretation and number of bands: grey, RGB, palette, CMYK, YCbCr, CIE L*a*b*.
_PLAIN_BANDS = {(0, 1), (1, 1), (2, 3), (3, 1), (5, 4), (6, 3), (8, 3)}
# For each file of many bands, which tifffile reads then, it would print a line without the file's name.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)


def is_multiband(file: Image.Image) -> bool:
    """Check whether an opened TIFF file holds several pages, other bands than a grey or colour image, or deep colours.

    Pillow would read its first page, three of its bands, or the upper 8 bits of these. Small copies of the image do not
    count as pages. Files of other formats have neither.
    """
    if file.format != "TIFF":
        return False
    tags = file.tag_v2  # type: ignore[attr-defined]
    num_alpha = sum(kind in _ALPHA for kind in tags.get(_EXTRA_SAMPLES, ()))
    is_plain = (tags.get(_PHOTOMETRIC), tags.get(_SAMPLES, 1) - num_alpha) in _PLAIN_BANDS
    bits = tags.get(_BITS, (1,))
    is_deep_color = tags.get(_SAMPLES, 1) > 1 and max(bits if isinstance(bits, tuple) else (bits,)) > _BYTE
    return not is_plain or is_deep_color or (file.n_frames > 1 and _num_full_pages(file) > 1)  # type: ignore[attr-defined]


def stored_size(file: Image.Image) -> tuple[int, int]:
    """Return (height, width) of an opened file as it is stored; some versions of Pillow turn that of a TIFF."""
    width, height = file.size
    tags = file.tag_v2 if file.format == "TIFF" else {}  # type: ignore[attr-defined]
    return tags.get(_HEIGHT, height), tags.get(_WIDTH, width)


def _num_full_pages(file: Image.Image) -> int:
    """Count the pages of a TIFF file that are not reduced copies of others."""
    pages = []
    for number in range(file.n_frames):  # type: ignore[attr-defined]
        file.seek(number)
        if not file.tag_v2.get(_SUBFILE_TYPE, 0):  # type: ignore[attr-defined]
            pages.append(file.size)
    file.seek(0)
    return pages.count(pages[0]) if pages else 1
