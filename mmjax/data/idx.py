"""The idx file format of MNIST, plain or gzipped."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

_UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path) -> np.ndarray:
    """Read an idx file of unsigned bytes, gzipped or not; uint8 of whatever shape the header says.

    Raises FileNotFoundError, and ValueError naming the file when the magic number is wrong or bytes are missing.
    Source: the format's description on the MNIST page: 0, 0, type, number of axes, sizes (big-endian), data.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "labels-idx1-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    ...     read_idx(path)
    array([7, 8, 9], dtype=uint8)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an idx file was expected here")
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError) as error:
            raise ValueError(f"{path}: broken gzip file ({error}); download it again") from error
    if len(raw) < 4 or raw[0] or raw[1] or raw[2] != _UNSIGNED_BYTE or not raw[3]:
        raise ValueError(
            f"{path}: magic number {raw[:4].hex()!r} is not one of an idx file of unsigned bytes "
            "(00000803 for images, 00000801 for labels)"
        )
    axes = raw[3]
    start = 4 + 4 * axes
    shape = tuple(int(size) for size in np.frombuffer(raw[4:start], dtype=">u4")) if len(raw) >= start else None
    if shape is None or len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path}: {len(raw)} bytes, but the header asks for {start} and the product of {shape}; "
            "the file is truncated or has something appended"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)
