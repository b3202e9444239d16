"""Features of images, as numpy arrays over libmoco's memory."""

import ctypes
from typing import Any, Optional, Tuple, Union

import numpy as np
import numpy.typing as npt

from . import _abi
from ._library import Handle, Owner, lib, read


class Features(Owner):
    """Features of a number of images: for each tap one array, [images, channels] or [images, channels, height, width].

    `features["c5"]` is the array of a tap, `numpy.asarray(features)` that of the first. The arrays are read-only views of
    memory that lives as long as any of them.
    """

    @property
    def taps(self) -> Tuple[str, ...]:
        """Names of the taps, in the order in which the backbone was opened with them."""
        handle = self._open_handle()
        return tuple(read(lib.moco_features_tap_name(handle, tap)) for tap in range(lib.moco_features_taps(handle)))

    def __getitem__(self, tap: Union[str, int]) -> npt.NDArray[np.float32]:
        """The array of a tap, by name or number. Nothing is copied."""
        handle = self._open_handle()
        shape, dims, length = (ctypes.c_size_t * 4)(), ctypes.c_size_t(), ctypes.c_size_t()
        index = self._index(tap)
        lib.moco_features_shape(handle, index, shape, dims)
        data = lib.moco_features_data(handle, index, length)
        sizes = tuple(shape[: dims.value])
        if not data:
            return np.empty(sizes, np.float32)
        return np.asarray(Lent(handle, ctypes.addressof(data.contents), sizes))

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> npt.NDArray[Any]:
        array = self[0]
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"features are float32; as {np.dtype(dtype)} they must be copied")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __len__(self) -> int:
        """Number of images."""
        return int(lib.moco_features_images(self._open_handle()))

    def __enter__(self) -> "Features":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<moco.Features, closed>"
        taps = ", ".join(f"{tap} {list(self[tap].shape)}" for tap in self.taps)
        return f"<moco.Features of {len(self)} images: {taps}>"

    def _index(self, tap: Union[str, int]) -> int:
        taps = self.taps
        if isinstance(tap, str):
            if tap not in taps:
                raise KeyError(f"there is no tap {tap!r} among these features, only {', '.join(taps)}")
            return taps.index(tap)
        index = range(len(taps))
        try:
            return index[tap]
        except IndexError:
            raise IndexError(f"there is no tap {tap}: these features have {len(taps)}") from None


class Lent:
    """What numpy makes an array from, and keeps alive with it."""

    def __init__(self, handle: Handle, address: int, shape: Tuple[int, ...], dtype: Any = np.float32) -> None:
        self.handle = handle
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": shape,
            "typestr": np.dtype(dtype).str,
        }


def take(pointer: Any) -> Features:
    """Owns what a function of moco.h gave."""
    return Features(Handle(pointer, lib.moco_features_free))


def new() -> Any:
    """Where such a function writes."""
    return ctypes.POINTER(_abi.moco_features)()
