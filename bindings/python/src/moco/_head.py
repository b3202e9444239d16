"""Linear heads: fitted on features, saved, opened, turned on other features."""

import ctypes
import os
from typing import Any, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import numpy.typing as npt

from . import _abi, _fit
from ._features import Features
from ._library import Handle, Owner, lib, need_threads, read, text, whole

_FLOATS = ctypes.POINTER(ctypes.c_float)
_LABELS = ctypes.POINTER(ctypes.c_uint32)


class Prediction(NamedTuple):
    """Classes and their probabilities."""

    labels: npt.NDArray[np.uint32]
    """[images]: the most probable class."""
    probabilities: npt.NDArray[np.float32]
    """[images, classes]: rows that add up to 1."""


class Head(Owner):
    """A linear head: scores = features · weightᵀ + bias, one score a class.

    `Head.fit()` makes one, `Head.open()` reads one.
    """

    @classmethod
    def fit(
        cls,
        features: Union[Features, npt.ArrayLike],
        labels: npt.ArrayLike,
        classes: Optional[int] = None,
        *,
        tap: Union[str, int] = 0,
        class_names: Optional[Sequence[str]] = None,
        epochs: Optional[int] = None,
        batch: Optional[int] = None,
        learning_rate: Optional[float] = None,
        weight_decay: float = 0.0,
        seed: int = 0,
        keep_scale: bool = False,
        progress: Optional[_fit.OnProgress] = None,
    ) -> "Head":
        """Fits a head on features and one label an image.

        `features`: of a backbone, of which `tap` is used (maps are flattened); the head then remembers tap and backbone.
        Or an array [images, values] of float32. `labels`: whole numbers from 0. `classes`: by default as many as there
        are names, or the largest label + 1. `epochs`: 100 by default. `batch`: features a step; 256 by default.
        `learning_rate`: by default several are tried and the best on a held-out tenth is taken. `weight_decay`: L2
        penalty. `seed`: order of the images, start, held-out part. `keep_scale`: take features as they are; by default
        they are brought to mean 0 and deviation 1 meanwhile, and the head remains a linear layer on the features as they
        are. `progress`: called after each epoch in the thread that called `fit()`; `False` cancels, which raises
        `MocoError` with `Code.CANCELLED`, and what it raises, `fit()` raises. Ctrl-C stops at the next epoch.
        """
        numbers = _labels(labels)
        if classes is None:
            classes = len(class_names) if class_names is not None else int(numbers.max(initial=0)) + 1
        classes = whole(classes, "classes", least=1)
        options = _fit.options(classes, class_names, epochs, batch, learning_rate, weight_decay, seed, keep_scale)
        targets = numbers.ctypes.data_as(_LABELS)
        if isinstance(features, Features):
            handle, index = features._open_handle(), features._index(tap)
            arguments = (handle, index, targets, numbers.size, classes, options)
            return cls(_fit.run(lib.moco_head_fit_features, *arguments, progress=progress))
        if tap != 0:
            raise ValueError("`tap` chooses among moco.Features; an array is taken whole")
        rows = _rows(features)
        if len(rows) != numbers.size:
            raise ValueError(f"there are {len(rows)} rows of features, but {numbers.size} labels")
        values = rows.ctypes.data_as(_FLOATS)
        return cls(_fit.run(lib.moco_head_fit, values, *rows.shape, targets, classes, options, progress=progress))

    @classmethod
    def open(cls, path: Union[str, "os.PathLike[str]"]) -> "Head":
        """Reads a head that `save()` or `moco-train eval linear --save` wrote."""
        out = ctypes.POINTER(_abi.moco_head)()
        lib.moco_head_open(text(path, "path"), out)
        return cls(Handle(out, lib.moco_head_free))

    def save(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Writes a safetensors file, whole or not at all; an existing file is replaced."""
        lib.moco_head_save(self._open_handle(), text(path, "path"))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(lib.moco_head_classes(self._open_handle()))

    @property
    def dim(self) -> int:
        """Number of features it reads."""
        return int(lib.moco_head_dim(self._open_handle()))

    @property
    def tap(self) -> str:
        """The tap whose features it reads; empty if it was fitted on an array."""
        return read(lib.moco_head_tap(self._open_handle()))

    @property
    def class_names(self) -> Tuple[str, ...]:
        """Names of the classes; empty if it has none."""
        handle = self._open_handle()
        names = (lib.moco_head_class_name(handle, label) for label in range(lib.moco_head_classes(handle)))
        return tuple(read(name) for name in names if name is not None)

    def predict(self, features: Union[Features, npt.ArrayLike]) -> Prediction:
        """Classes and probabilities for features.

        Of `Features`, the tap is taken that the head was fitted on, or the first if the head does not know; those of another
        backbone are refused. An array is [images, values] of float32.
        """
        handle, classes = self._open_handle(), self.classes
        need_threads()
        if isinstance(features, Features):
            lent, index = features._open_handle(), features._index(self.tap or 0)
            answer = _room(len(features), classes)
            lib.moco_head_predict_features(handle, lent, index, *_targets(answer))
        else:
            rows = _rows(features)
            answer = _room(len(rows), classes)
            lib.moco_head_predict(handle, rows.ctypes.data_as(_FLOATS), *rows.shape, *_targets(answer))
        return answer

    def __enter__(self) -> "Head":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<moco.Head, closed>"
        names = self.class_names
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        tap = f" of {self.tap}" if self.tap else ""
        return f"<moco.Head: {self.dim} values{tap} → {self.classes} classes{': ' + shown if shown else ''}>"


def _labels(labels: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"labels have the shape {array.shape}, expected one whole number an image")
    if array.size == 0:
        return np.empty(0, np.uint32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels are of {array.dtype}, expected whole numbers from 0")
    if array.min() < 0 or array.max() >= 1 << 32:
        raise ValueError(f"labels go from {array.min()} to {array.max()}, expected 0 to the number of classes - 1")
    return np.ascontiguousarray(array, np.uint32)


def _rows(features: npt.ArrayLike) -> npt.NDArray[np.float32]:
    array = np.asarray(features)
    if array.dtype != np.float32:
        raise TypeError(f"features are of {array.dtype}, expected float32: convert by .astype(numpy.float32)")
    if array.ndim != 2:
        raise ValueError(f"features have the shape {array.shape}, expected images × values")
    return np.ascontiguousarray(array)


def _room(images: int, classes: int) -> Prediction:
    return Prediction(np.empty(images, np.uint32), np.empty((images, classes), np.float32))


def _targets(answer: Prediction) -> Tuple[Any, int, Any, int]:
    labels, probabilities = answer
    return (
        probabilities.ctypes.data_as(_FLOATS),
        probabilities.size,
        labels.ctypes.data_as(_LABELS),
        labels.size,
    )
