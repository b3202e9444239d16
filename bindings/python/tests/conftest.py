"""What every test uses. `cargo xtask test` sets the variables; the package under test is the installed wheel."""

import ctypes
import gc
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

import moco


def _folder(variable: str) -> Path:
    if variable not in os.environ:
        pytest.exit(f"{variable} is not set: run these tests by `cargo xtask test --only-installed`", returncode=2)
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def backbone_path() -> Path:
    return _folder("MOCO_TEST_BACKBONE")


@pytest.fixture(scope="session")
def images() -> Path:
    return _folder("MOCO_TEST_IMAGES")


@pytest.fixture(scope="session")
def prefix() -> Path:
    return _folder("MOCO_TEST_PREFIX")


@pytest.fixture(scope="session")
def backbone(backbone_path):
    """Opened once, with a vector and a map."""
    return moco.Backbone(backbone_path, taps=("pooled", "c5"))


@pytest.fixture(scope="session")
def pictures(images):
    return sorted((images / "test").glob("*/*.jpg"))[::20]


@pytest.fixture
def random():
    return np.random.default_rng(3)


def allocated() -> int:
    """Bytes that C has allocated and not freed. More exact than the size of the process, which keeps what was freed."""

    class Mallinfo2(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        ]

    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    gc.collect()
    told = mallinfo2()
    return told.uordblks + told.hblkhd


def png(pixels: np.ndarray) -> bytes:
    """A PNG file, RGB or grey, so that the pixels of a file are known exactly."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
