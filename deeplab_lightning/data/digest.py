"""Compare the digests of data sets, which describe all images and labels."""

DIGEST_LENGTH = 16
"""Hexadecimal digits of the digest of a data set; those of earlier versions have 12 and another meaning."""


def is_other_data(then: str | None, now: str) -> bool:
    """Check whether two digests show that images or labels differ; those of earlier versions show nothing.

    Args:
        then: Digest of the data of a training; None or empty if it is unknown.
        now: Another one.
    """
    return bool(then) and len(str(then)) == len(now) and then != now
