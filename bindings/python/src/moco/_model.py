"""Models: a backbone and a head in one file, turned on images."""

import ctypes
import json
import os
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple, Union

import numpy as np
import numpy.typing as npt

from . import _abi, _images, _samples
from ._features import Lent
from ._library import Handle, Owner, lib, need_threads, read, text, whole


class Detections(NamedTuple):
    """Objects found in an image, the surest first."""

    boxes: npt.NDArray[np.float32]
    """[objects, 4]: left, upper, right and lower edge in pixels of the image."""
    labels: npt.NDArray[np.uint32]
    """[objects]: classes, from 0."""
    scores: npt.NDArray[np.float32]
    """[objects]: how sure, 0 to 1."""


class Answer(NamedTuple):
    """What a model says about one image; what its task does not give is `None`."""

    probabilities: Optional[npt.NDArray[np.float32]] = None
    """[classes]: they add up to 1 where classes exclude each other."""
    mask: Optional[npt.NDArray[np.uint8]] = None
    """[height, width]: the most probable class of every pixel."""
    confidence: Optional[npt.NDArray[np.float32]] = None
    """[height, width]: how probable that is."""
    detections: Optional[Detections] = None
    """The objects that were found."""

    @property
    def label(self) -> int:
        """The most probable class of the image."""
        if self.probabilities is None:
            raise ValueError("this is not the answer of a classifier")
        return int(self.probabilities.argmax())


class Answers(Owner):
    """Answers about a number of images: a sequence of `Answer`.

    Their arrays are read-only views of memory that lives as long as any of them.
    """

    def __len__(self) -> int:
        return int(lib.moco_prediction_images(self._open_handle()))

    def __getitem__(self, image: int) -> Answer:
        handle = self._open_handle()
        index = range(len(self))[image]
        length, width, height = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_size_t()
        if probabilities := lib.moco_prediction_probabilities(handle, index, length):
            return Answer(probabilities=_view(handle, probabilities, (length.value,), "f4"))
        if mask := lib.moco_prediction_mask(handle, index, width, height):
            size = (height.value, width.value)
            confidence = lib.moco_prediction_confidence(handle, index, length)
            return Answer(mask=_view(handle, mask, size, "u1"), confidence=_view(handle, confidence, size, "f4"))
        found = lib.moco_prediction_detections(handle, index, length)
        if not found:
            return Answer(detections=Detections(np.empty((0, 4), "f4"), np.empty(0, "u4"), np.empty(0, "f4")))
        words = _view(handle, found, (length.value, 6), "f4")
        return Answer(detections=Detections(words[:, :4], words.view(np.uint32)[:, 4], words[:, 5]))

    def __iter__(self) -> Iterator[Answer]:
        return (self[image] for image in range(len(self)))

    def __repr__(self) -> str:
        return "<moco.Answers, closed>" if self.closed else f"<moco.Answers about {len(self)} images>"


class Model(Owner):
    """A backbone and a head: answers with classes, masks or boxes. `Session.model()` makes one, `Model.open()` reads one.

    Any number of threads may call one model.
    """

    @classmethod
    def open(cls, path: Union[str, "os.PathLike[str]"]) -> "Model":
        """Reads a model that `save()` or `moco-train finetune` wrote, from a file or from "hf://owner/name" in a Hub."""
        out = ctypes.POINTER(_abi.moco_model)()
        lib.moco_model_open(text(path, "path"), out)
        return cls(Handle(out, lib.moco_model_free))

    def save(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Writes a safetensors file, whole or not at all; an existing file is replaced."""
        lib.moco_model_save(self._open_handle(), text(path, "path"))

    def export_onnx(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Writes one ONNX file: images in, probabilities, masks or boxes out."""
        lib.moco_model_export_onnx(self._open_handle(), text(path, "path"))

    @property
    def task(self) -> _samples.Task:
        """What it says about an image."""
        return _samples.Task(lib.moco_model_task(self._open_handle()))

    @property
    def class_names(self) -> Tuple[str, ...]:
        """Names of the classes."""
        handle = self._open_handle()
        return tuple(read(lib.moco_model_class_name(handle, label)) for label in range(lib.moco_model_classes(handle)))

    @property
    def channels(self) -> int:
        """Channels of the images it reads."""
        return int(lib.moco_model_channels(self._open_handle()))

    @property
    def card(self) -> Dict[str, Any]:
        """The card of its backbone."""
        card: Dict[str, Any] = json.loads(read(lib.moco_model_card(self._open_handle())))
        return card

    @property
    def head(self) -> Dict[str, Any]:
        """The card of its head: head, classes, size and preparation of images, training options, measures."""
        head: Dict[str, Any] = json.loads(read(lib.moco_model_head(self._open_handle())))
        return head

    def predict(
        self,
        images: _images.Images,
        *,
        window: Optional[_images.Window] = None,
        bits: Optional[int] = None,
        inverted: bool = False,
        device: Optional[str] = None,
        batch: Optional[int] = None,
        max_detections: Optional[int] = None,
        score: Optional[float] = None,
        nms_iou: Optional[float] = None,
    ) -> Answers:
        """Answers about images of any size, each in pixels of its image.

        `images`, `window`, `bits`, `inverted`: as for `Backbone.extract()`, but not the bytes of files. `device`: "auto",
        "cpu", "cuda:0". `batch`: images, or tiles of a large image, that are computed at once; it changes
        answers by rounding only. Of a detector, `max_detections`: most objects an image, 100 by default; `score`: objects that are less sure
        are left out, 0.05 by default; `nms_iou`: of two boxes of a class that overlap by more, the surer is kept, 0.6 by
        default.
        """
        handle = self._open_handle()
        need_threads()
        given = _images.images(images, _images.Values(window, bits, inverted))
        if given.kind == "encoded":
            raise TypeError("images are the bytes of files: give paths or numpy arrays")
        function = lib.moco_model_predict_paths if given.kind == "paths" else lib.moco_model_predict
        out = ctypes.POINTER(_abi.moco_prediction)()
        function(handle, given.array, given.n, predict_options(device, batch, max_detections, score, nms_iou), out)
        return Answers(Handle(out, lib.moco_prediction_free))

    def evaluate(
        self,
        data: _samples.Data,
        *,
        window: Optional[_images.Window] = None,
        bits: Optional[int] = None,
        inverted: bool = False,
        device: Optional[str] = None,
        batch: Optional[int] = None,
    ) -> Dict[str, float]:
        """Measures by name on labelled images; the first is the one that decides. `data`: as for `Session.fit()`."""
        handle = self._open_handle()
        need_threads()
        meaning = _images.Values(window, bits, inverted)
        reader = _samples.Reader(data, self.task, lib.moco_model_classes(handle), meaning)
        out = ctypes.POINTER(_abi.moco_metrics)()
        try:
            lib.moco_model_evaluate(handle, reader.raw, predict_options(device, batch), out)
        except BaseException:
            if reader.failed is not None:
                raise reader.failed from None
            raise
        return metrics(out)

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<moco.Model, closed>"
        names = self.class_names
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        return f"<moco.Model to {self.task.name.lower().replace('_', '-')}: {shown}>"


def predict_options(
    device: Optional[str] = None,
    batch: Optional[int] = None,
    max_detections: Optional[int] = None,
    score: Optional[float] = None,
    nms_iou: Optional[float] = None,
) -> _abi.moco_predict_options:
    """Options as C reads them. 0 means the default there and None here, so that a 0 that somebody meant is an error."""
    options = _abi.moco_predict_options(struct_size=ctypes.sizeof(_abi.moco_predict_options))
    options.device = None if device is None else text(device, "device")
    options.batch = 0 if batch is None else whole(batch, "batch", least=1)
    options.max_detections = 0 if max_detections is None else whole(max_detections, "max_detections", least=1)
    for name, value in (("score", score), ("nms_iou", nms_iou)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"`{name}` is {value}, expected more than 0 and at most 1")
        setattr(options, name, 0.0 if value is None else value)
    return options


def metrics(pointer: Any) -> Dict[str, float]:
    """Measures that a function of moco.h gave, which are freed."""
    handle = Handle(pointer, lib.moco_metrics_free)
    names = (read(lib.moco_metrics_name(handle, i)) for i in range(lib.moco_metrics_len(handle)))
    return {name: float(lib.moco_metrics_value(handle, i)) for i, name in enumerate(names)}


def _view(handle: Handle, pointer: Any, shape: Tuple[int, ...], kind: str) -> npt.NDArray[Any]:
    return np.asarray(Lent(handle, ctypes.addressof(pointer.contents), shape, kind))
