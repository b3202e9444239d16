"""Images as moco.h takes them: paths, the bytes of files, or pixels of numpy arrays, which are not copied here."""

import ctypes
import os
from typing import Any, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import numpy.typing as npt

from . import _abi
from ._library import text, whole

Image = Union[str, "os.PathLike[str]", bytes, npt.NDArray[Any]]
#: One image, a batch in one array [images, height, width, channels], or any number of images of one kind.
Images = Union[Image, Iterable[Image]]
#: Values that become 0 and 255.
Window = Tuple[float, float]


class Values(NamedTuple):
    """What the values of arrays mean."""

    window: Optional[Window] = None
    bits: Optional[int] = None
    inverted: bool = False

    def type_of(self, dtype: "np.dtype[Any]") -> int:
        """moco_pixels.type."""
        bits = 0 if self.bits is None else whole(self.bits, "bits", bits=8, least=1)
        return _PIXEL_TYPES[dtype] | bits << 8 | (1 << 16 if self.inverted else 0)


_PIXEL_TYPES = {
    np.dtype(np.uint8): _abi.MOCO_PIXEL_TYPE_U8,
    np.dtype(np.uint16): _abi.MOCO_PIXEL_TYPE_U16,
    np.dtype(np.int16): _abi.MOCO_PIXEL_TYPE_I16,
    np.dtype(np.float32): _abi.MOCO_PIXEL_TYPE_F32,
}


class Input(NamedTuple):
    """An array of C structs or strings, and what must live while it is read."""

    kind: str
    array: Any
    n: int
    alive: Sequence[Any]


def images(given: Images, meaning: Values) -> Input:
    """Images of any kind, all of the same kind."""
    listed = _listed(given)
    kinds = [_kind(image, i) for i, image in enumerate(listed)]
    kind = kinds[0] if kinds else "pixels"
    for i, other in enumerate(kinds):
        if other != kind:
            raise TypeError(f"images[0] is {_WORDS[kind]}, but images[{i}] is {_WORDS[other]}: give one kind a call")
    if kind == "pixels":
        return pixels(listed, meaning)
    for name, value in meaning._asdict().items():
        if value is not None and value is not False:
            raise ValueError(f"`{name}` is about the values of numpy arrays; files are taken as they are")
    if kind == "paths":
        paths = [text(path, f"images[{i}]") for i, path in enumerate(listed)]
        return Input(kind, (ctypes.c_char_p * len(paths))(*paths), len(paths), paths)
    buffers = [np.frombuffer(image, np.uint8) for image in listed]
    array = (_abi.moco_bytes * len(buffers))()
    for entry, buffer in zip(array, buffers):
        entry.data = ctypes.cast(buffer.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
        entry.len = buffer.size
    return Input(kind, array, len(buffers), buffers)


def pixels(given: Images, meaning: Values) -> Input:
    """Numpy arrays only."""
    arrays: List[npt.NDArray[Any]] = []
    for i, image in enumerate(_listed(given)):
        kind = _kind(image, i)
        if kind != "pixels":
            raise TypeError(f"images[{i}] is {_WORDS[kind]}; a numpy array is expected here")
        arrays.append(_readable(image, i, meaning.window))
    array = (_abi.moco_pixels * len(arrays))()
    for entry, values in zip(array, arrays):
        entry.data = values.ctypes.data
        entry.row_stride = values.strides[0]
        entry.height, entry.width = values.shape[:2]
        entry.channels = values.shape[2] if values.ndim == 3 else 1
        entry.type = meaning.type_of(values.dtype)
        if meaning.window is not None:
            entry.black, entry.white = meaning.window
    return Input("pixels", array, len(arrays), arrays)


_WORDS = {"paths": "a path", "encoded": "bytes", "pixels": "an array"}


def _listed(given: Images) -> List[Any]:
    if isinstance(given, np.ndarray):
        if given.dtype.kind in "UO":  # Names of files.
            return list(given.flat)
        return list(given) if given.ndim == 4 else [given]
    if isinstance(given, (str, os.PathLike, bytes, bytearray, memoryview)):
        return [given]
    if not isinstance(given, Iterable):
        raise TypeError(f"images must be paths, bytes or numpy arrays, not {type(given).__name__}{_advice(given)}")
    return list(given)


def _kind(image: object, i: int) -> str:
    if isinstance(image, (str, os.PathLike)):
        return "paths"
    if isinstance(image, (bytes, bytearray, memoryview)):
        return "encoded"
    if isinstance(image, np.ndarray):
        return "pixels"
    raise TypeError(f"images[{i}] must be a path, bytes or a numpy array, not {type(image).__name__}{_advice(image)}")


def _advice(image: object) -> str:
    if hasattr(image, "convert") and hasattr(image, "mode"):
        return '; of a PIL image give numpy.asarray(image.convert("RGB"))'
    if hasattr(image, "numpy"):
        return "; of a tensor give .cpu().numpy(), height × width × channels"
    return ""


def _readable(image: npt.NDArray[Any], i: int, window: Optional[Window]) -> npt.NDArray[Any]:
    """The array itself if its rows can be read where they are, else a copy."""
    if image.ndim not in (2, 3):
        raise ValueError(
            f"images[{i}] has the shape {image.shape}: height × width × channels is expected, height × width for grey, "
            "or images × height × width × channels for a batch"
        )
    if image.size == 0:
        raise ValueError(f"images[{i}] has the shape {image.shape}: it holds no pixel")
    native = image.dtype.newbyteorder("=")
    if native not in _PIXEL_TYPES:
        raise TypeError(
            f"images[{i}] is of {image.dtype}: uint8 is expected, or uint16, int16 or float32 with `window`; "
            "convert others by .astype(numpy.float32)"
        )
    if native == np.uint8 and window is not None:
        raise ValueError(f"images[{i}] is of uint8, which is taken as it is: `window` is for uint16, int16 and float32")
    if max(image.shape) >= 1 << 32:
        raise ValueError(f"images[{i}] has the shape {image.shape}: a side is too long")
    image = image.astype(native, copy=False)
    channels = image.shape[2] if image.ndim == 3 else 1
    packed = (channels * image.itemsize, image.itemsize)[: image.ndim - 1]
    row = image.shape[1] * packed[0]
    # A side of length 1 may have any stride, and a lone row's stride must still span the row.
    dense = all(size == 1 or stride == want for size, stride, want in zip(image.shape[1:], image.strides[1:], packed))
    aligned = image.flags.aligned and image.strides[0] % image.itemsize == 0
    if dense and aligned and image.strides[0] >= row:
        return image
    return np.ascontiguousarray(image)
