"""Labelled images as moco.h takes them: from anything with a length whose items are an image and the truth about it."""

import ctypes
import enum
import threading
from typing import Any, Dict, List, NamedTuple, Optional, Protocol, Sequence, Tuple, Union

import numpy as np
import numpy.typing as npt

from . import _abi, _images
from ._library import whole


class Task(enum.IntEnum):
    """What a model says about an image."""

    CLASSIFY = _abi.MOCO_TASK_CLASSIFY
    """One class: the truth is a whole number."""
    MULTI_LABEL = _abi.MOCO_TASK_MULTI_LABEL
    """Any number of classes: the truth is an array [classes] of 0 and 1."""
    SEGMENT = _abi.MOCO_TASK_SEGMENT
    """A class for every pixel: the truth is an array [height, width] of uint8; 255 says nothing."""
    DETECT = _abi.MOCO_TASK_DETECT
    """Boxes with a class each: the truth is `Boxes`, or a tuple of its fields."""

    @classmethod
    def of(cls, task: Union["Task", str, int]) -> "Task":
        """By value or by name: "classify", "multi-label", "segment", "detect"."""
        if not isinstance(task, str):
            return cls(task)
        try:
            return cls[task.upper().replace("-", "_")]
        except KeyError:
            known = ", ".join(repr(t.name.lower().replace("_", "-")) for t in cls)
            raise ValueError(f"there is no task {task!r}, only {known}") from None


class Boxes(NamedTuple):
    """Objects that are known to be in an image."""

    boxes: npt.ArrayLike
    """[objects, 4]: left, upper, right and lower edge in pixels; all of the image is 0, 0, width, height."""
    labels: npt.ArrayLike
    """[objects]: classes, from 0."""
    ignored: Optional[npt.ArrayLike] = None
    """[objects]: where true, neither finding nor missing it counts."""


class Data(Protocol):
    """A list of (image, truth), a data set of PyTorch, or anything else that has these two."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


#: An item in C, and the arrays it points into.
Sample = Tuple[_abi.moco_sample, List[Any]]


def sample(image: npt.NDArray[Any], truth: Any, task: Task, classes: int, meaning: _images.Values, name: str) -> Sample:
    """An image and its truth. `name` is what errors call it."""
    given = _images.pixels([image], meaning)
    c_sample = _abi.moco_sample()
    c_sample.pixels = given.array[0]
    alive: List[Any] = [given]
    try:
        _FILL[task](c_sample.target, truth, classes, image.shape[:2], alive)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    return c_sample, alive


class Reader:
    """A data set during one call: gives samples to libmoco, and keeps what reading them raised."""

    def __init__(self, data: Data, task: Task, classes: int, meaning: _images.Values) -> None:
        self._data, self._task, self._classes, self._meaning = data, task, classes, meaning
        self._lock = threading.Lock()
        self._next = 0
        self._alive: Dict[int, Sample] = {}
        self.failed: Optional[BaseException] = None
        self._read, self._release = _abi.moco_sample_read(self.read), _abi.moco_sample_release(self.release)
        self.raw = _abi.moco_samples(struct_size=ctypes.sizeof(_abi.moco_samples), len=len(data))
        self.raw.read, self.raw.release, self.raw.concurrent = self._read, self._release, 1

    def read(self, index: int, out: Any, _user: Any) -> int:
        """moco_samples.read: several threads at once, as far as the GIL and the data set go."""
        try:
            image, truth = self._data[index]
            made = sample(np.asarray(image), truth, self._task, self._classes, self._meaning, f"sample {index}")
            with self._lock:
                self._next += 1
                self._alive[self._next] = made
                made[0].owner = self._next
            ctypes.memmove(out, ctypes.byref(made[0]), ctypes.sizeof(made[0]))
            return 0
        except BaseException as error:
            if self.failed is None:
                self.failed = error
            return 1

    def release(self, given: Any, _user: Any) -> None:
        """moco_samples.release."""
        with self._lock:
            self._alive.pop(given.contents.owner, None)


def _class(target: _abi.moco_target, truth: Any, _classes: int, _size: Tuple[int, ...], _alive: List[Any]) -> None:
    target.label = whole(truth, "label")


def _set(target: _abi.moco_target, truth: Any, classes: int, _size: Tuple[int, ...], alive: List[Any]) -> None:
    labels = np.asarray(truth)
    if labels.shape != (classes,) or labels.dtype.kind not in "biu":
        raise ValueError(f"labels are of {labels.dtype} {list(labels.shape)}, expected 0 or 1 for each of {classes} classes")
    if labels.size and (labels.min() < 0 or labels.max() > 1):
        raise ValueError(f"labels hold {labels.min()} to {labels.max()}, expected 0 or 1")
    target.labels = _pointer(np.ascontiguousarray(labels, np.uint8), ctypes.c_uint8, alive)


def _mask(target: _abi.moco_target, truth: Any, _classes: int, size: Tuple[int, ...], alive: List[Any]) -> None:
    mask = np.asarray(truth)
    if mask.dtype == np.bool_:
        mask = mask.view(np.uint8)
    if mask.dtype != np.uint8:
        raise TypeError(f"the mask is of {mask.dtype}, expected uint8: classes from 0, and 255 for what says nothing")
    if mask.shape != size:
        raise ValueError(f"the mask is {list(mask.shape)}, its image {list(size)} (height, width)")
    if mask.strides[1] != 1 or mask.strides[0] < mask.shape[1]:
        mask = np.ascontiguousarray(mask)
    target.mask_stride = mask.strides[0]
    target.mask = _pointer(mask, ctypes.c_uint8, alive)


def _boxes(target: _abi.moco_target, truth: Any, _classes: int, _size: Tuple[int, ...], alive: List[Any]) -> None:
    given = truth if isinstance(truth, Boxes) else Boxes(*truth)
    boxes, labels = np.asarray(given.boxes, np.float32), np.asarray(given.labels)
    if boxes.size == 0:
        boxes, labels = boxes.reshape(0, 4), labels.astype(np.uint32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes have the shape {list(boxes.shape)}, expected [objects, 4]")
    if labels.shape != boxes.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"labels are of {labels.dtype} {list(labels.shape)}, expected a whole number for each of {len(boxes)} boxes")
    if labels.size and (labels.min() < 0 or labels.max() >= 1 << 32):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}")
    ignored = np.zeros(len(boxes), np.uint32) if given.ignored is None else np.asarray(given.ignored, bool).astype(np.uint32)
    if ignored.shape != labels.shape:
        raise ValueError(f"`ignored` has the shape {list(ignored.shape)}, expected [{len(boxes)}]")
    packed = np.empty(len(boxes), _BOX)
    packed["edges"], packed["label"], packed["flags"] = boxes, labels, ignored
    target.boxes, target.boxes_len = _pointer(packed, _abi.moco_box, alive), len(boxes)


_BOX = np.dtype([("edges", np.float32, 4), ("label", np.uint32), ("flags", np.uint32)])


def _pointer(array: npt.NDArray[Any], of: Any, alive: List[Any]) -> Any:
    alive.append(array)
    return array.ctypes.data_as(ctypes.POINTER(of))


_FILL = {Task.CLASSIFY: _class, Task.MULTI_LABEL: _set, Task.SEGMENT: _mask, Task.DETECT: _boxes}


def batch(
    images: Sequence[npt.NDArray[Any]], truths: Sequence[Any], task: Task, classes: int, meaning: _images.Values
) -> Tuple[Any, Any, int, List[Any]]:
    """Images and truths of one step: two arrays in C, their length, and what they point into."""
    if len(images) != len(truths):
        raise ValueError(f"there are {len(images)} images, but {len(truths)} truths")
    made = [
        sample(np.asarray(image), truth, task, classes, meaning, f"images[{i}]")
        for i, (image, truth) in enumerate(zip(images, truths))
    ]
    pixels, targets = (_abi.moco_pixels * len(made))(), (_abi.moco_target * len(made))()
    for i, (c_sample, _) in enumerate(made):
        pixels[i], targets[i] = c_sample.pixels, c_sample.target
    return pixels, targets, len(made), [alive for _, alive in made]
