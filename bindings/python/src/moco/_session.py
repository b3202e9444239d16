"""Training sessions: a head, and as much of its backbone as is wanted, learned from labelled images."""

import ctypes
import enum
import os
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import numpy.typing as npt

from . import _abi, _images, _samples
from ._background import Background
from ._library import Code, Handle, MocoError, Owner, lib, need_threads, text, whole
from ._model import Model, metrics


class Event(enum.IntEnum):
    """What a session has just done."""

    STEP = _abi.MOCO_SESSION_EVENT_STEP
    """A step of the training."""
    EPOCH = _abi.MOCO_SESSION_EVENT_EPOCH
    """An epoch, with its validation if it had one."""
    EVALUATED = _abi.MOCO_SESSION_EVENT_EVALUATED
    """Some images of an evaluation."""


class SessionProgress(NamedTuple):
    """How far a training or an evaluation is."""

    event: Event
    """What was just done."""
    step: int
    """Steps done."""
    steps: int
    """Steps of the whole training; 0 if it has no end."""
    epoch: int
    """Epochs done."""
    epochs: int
    """Epochs of the whole training."""
    images: int
    """Images done, of an evaluation."""
    images_total: int
    """Images of it."""
    loss: float
    """Loss of the step, mean loss of the epoch; NaN during an evaluation."""
    learning_rate: float
    """Learning rate of the head."""
    metric: float
    """The measure that decides, on the validation data of this epoch; NaN if there was no validation."""
    best_metric: float
    """The best of it so far; NaN if there is none."""


#: Called after steps, epochs and parts of evaluations; `False` cancels.
OnSessionProgress = Callable[[SessionProgress], Optional[bool]]


class Session(Owner):
    """A training in progress: a backbone with a head that learns.

    `place`: what it starts from: a backbone, as for `Backbone`; a model; or `None` for a random start. `task`: "classify",
    "multi-label", "segment" or "detect". `classes`: their names, or how many there are; for segmentation with the
    background, for detection without. All others are chosen if they are left out:

    `head`: "linear", "mlp:512"; "fpn", "unet:32"; "fcos", "fcos:width=96,convs=2,levels=3-7". `arch`: network of a random
    start, or "random" with the place of a backbone: its network and rule for images, with random weights. `freeze`: what does not learn, "nothing", "stages:2", "backbone". `batch_norm`: "trained" or "frozen". `loss` of a
    segmentation: "ce+dice", "focal", …. `augment`: "none", "light", "default", "microscopy". `optimiser`: "adamw" or "sgd".
    `class_weights`: as many as classes. `size`: height and width of the network's input, or one number for both.
    `channels` of the images. `values`: which values become black and white, of images whose depth the backbone does not
    name, e.g. "full" or "window:-160,240"; they keep their depth. `learning_rate` of the head, `backbone_rate` of the backbone's last stage and
    `layer_decay` of each stage before it as factors on that; `weight_decay`; `warmup`: share of the training; `average`:
    moving average of the weights, e.g. 0.999. `patience`: validations without a better result after which the training
    ends. `steps`: of a training that is fed by `step()`. `device`: "auto", "cpu", "cuda:0". `threads` that prepare images.
    `checkpoint`: file that `fit()` writes after each epoch. `settings`: more options as TOML.

    Raises `MocoError` that names the option. One call at a time; only `cancel()` may be called meanwhile.
    """

    def __init__(
        self,
        place: Union[str, "os.PathLike[str]", None] = None,
        *,
        task: Union[_samples.Task, str],
        classes: Union[int, Sequence[str]],
        head: Optional[str] = None,
        arch: Optional[str] = None,
        freeze: Optional[str] = None,
        batch_norm: Optional[str] = None,
        loss: Optional[str] = None,
        augment: Optional[str] = None,
        optimiser: Optional[str] = None,
        class_weights: Optional[Sequence[float]] = None,
        size: Union[int, Sequence[int], None] = None,
        channels: Optional[int] = None,
        values: Optional[str] = None,
        epochs: Optional[int] = None,
        steps: Optional[int] = None,
        batch: Optional[int] = None,
        learning_rate: Optional[float] = None,
        backbone_rate: Optional[float] = None,
        layer_decay: Optional[float] = None,
        weight_decay: Optional[float] = None,
        warmup: Optional[float] = None,
        average: Optional[float] = None,
        patience: Optional[int] = None,
        seed: int = 0,
        threads: Optional[int] = None,
        device: Optional[str] = None,
        checkpoint: Union[str, "os.PathLike[str]", None] = None,
        settings: Optional[str] = None,
    ) -> None:
        options = self._options(device=device, checkpoint=checkpoint, threads=threads)
        options.task = _samples.Task.of(task)
        if isinstance(classes, str):
            raise TypeError(f"`classes` must be names or a number, not {classes!r}")
        if not hasattr(classes, "__index__"):
            names = [text(name, f"classes[{i}]") for i, name in enumerate(classes)]
            options.class_names = (ctypes.c_char_p * len(names))(*names)
            classes = len(names)
        options.classes = whole(classes, "classes", least=1)
        words = {"head": head, "arch": arch, "freeze": freeze, "batch_norm": batch_norm, "loss": loss, "augment": augment}
        words.update(optimiser=optimiser, values=values, settings=settings)
        numbers = {"channels": channels, "epochs": epochs, "steps": steps, "batch": batch, "patience": patience}
        rates = {"learning_rate": learning_rate, "backbone_rate": backbone_rate, "layer_decay": layer_decay}
        rates.update(weight_decay=weight_decay, warmup=warmup, average=average)
        for name, word in words.items():
            setattr(options, name, None if word is None else text(word, name))
        for name, number in numbers.items():
            setattr(options, name, 0 if number is None else whole(number, name, least=1))
        for name, rate in rates.items():
            # 0 means the default in C and None here, so that a 0 that somebody meant is an error.
            if rate is not None and not rate > 0:
                raise ValueError(f"`{name}` is {rate}, expected more than 0; for none of it, say so in `settings`")
            setattr(options, name, 0.0 if rate is None else rate)
        if size is not None:
            height, width = (size, size) if hasattr(size, "__index__") else size
            options.height, options.width = whole(height, "size", least=1), whole(width, "size", least=1)
        if class_weights is not None:
            if len(class_weights) != options.classes:
                raise ValueError(f"there are {len(class_weights)} class weights for {options.classes} classes")
            options.class_weights = (ctypes.c_float * len(class_weights))(*class_weights)
        options.seed = whole(seed, "seed", bits=64)
        if isinstance(place, os.PathLike) and os.fspath(place).startswith("hf:/"):
            raise ValueError(f"`place` is {os.fspath(place)!r}: pathlib swallows a slash of hf://, so give it as a str")
        out = ctypes.POINTER(_abi.moco_session)()
        need_threads()
        lib.moco_session_open(None if place is None else text(place, "place"), options, out)
        self._own(out)

    @classmethod
    def resume(
        cls,
        path: Union[str, "os.PathLike[str]"],
        *,
        threads: Optional[int] = None,
        device: Optional[str] = None,
        checkpoint: Union[str, "os.PathLike[str]", None] = None,
    ) -> "Session":
        """Goes on from a checkpoint, to the bit as if the training had not been interrupted."""
        session = cls.__new__(cls)
        options = session._options(device=device, checkpoint=checkpoint, threads=threads)
        out = ctypes.POINTER(_abi.moco_session)()
        need_threads()
        lib.moco_session_resume(text(path, "path"), options, out)
        session._own(out)
        return session

    def fit(
        self,
        data: _samples.Data,
        validation: Optional[_samples.Data] = None,
        *,
        window: Optional[_images.Window] = None,
        bits: Optional[int] = None,
        inverted: bool = False,
        progress: Optional[OnSessionProgress] = None,
    ) -> None:
        """Trains to the end of the last epoch, from wherever the session is.

        `data`: a list, a data set of PyTorch or anything else with a length, whose items are an image and the truth about
        it: an array as for `Backbone.extract()`, and what `Task` says. Items are read whenever they are needed, in other
        threads. `validation`: the same, on which the weights are judged after each epoch; `model()` then gives the best.
        `progress`: called after each step, epoch and part of a validation, in the thread that called `fit()`; `False`
        cancels, which raises `MocoError` with `Code.CANCELLED`, and what it raises, `fit()` raises. So does Ctrl-C. The
        session can then go on.
        """
        meaning = _images.Values(window, bits, inverted)
        task, classes = self._asked()
        readers = [_samples.Reader(d, task, classes, meaning) for d in (data, validation) if d is not None]
        raw = [reader.raw for reader in readers] + [None] * (2 - len(readers))
        self._call(lambda handle: lib.moco_session_fit(handle, *raw), readers, progress)

    def step(
        self,
        images: Sequence[npt.NDArray[Any]],
        truths: Sequence[Any],
        *,
        window: Optional[_images.Window] = None,
        bits: Optional[int] = None,
        inverted: bool = False,
    ) -> float:
        """One step on a batch of the caller's own; returns the loss before it."""
        handle = self._open_handle()
        meaning = _images.Values(window, bits, inverted)
        pixels, targets, n, _alive = _samples.batch(images, truths, *self._asked(), meaning)
        need_threads()
        loss = ctypes.c_float()
        lib.moco_session_step(handle, pixels, targets, n, loss)
        return loss.value

    def evaluate(
        self,
        data: _samples.Data,
        *,
        window: Optional[_images.Window] = None,
        bits: Optional[int] = None,
        inverted: bool = False,
        progress: Optional[OnSessionProgress] = None,
    ) -> Dict[str, float]:
        """Measures by name of the model as it is now; the first is the one that decides. `data`: as for `fit()`."""
        reader = _samples.Reader(data, *self._asked(), _images.Values(window, bits, inverted))
        out = ctypes.POINTER(_abi.moco_metrics)()
        self._call(lambda handle: lib.moco_session_evaluate(handle, reader.raw, out), [reader], progress)
        return metrics(out)

    def model(self) -> Model:
        """The model as it is now: with the best weights that were validated, else their average, else the last ones."""
        out = ctypes.POINTER(_abi.moco_model)()
        lib.moco_session_model(self._open_handle(), out)
        return Model(Handle(out, lib.moco_model_free))

    def checkpoint(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Writes everything that `resume()` needs, whole or not at all."""
        lib.moco_session_checkpoint(self._open_handle(), text(path, "path"))

    def cancel(self) -> None:
        """Makes the call that runs stop soon; from any thread."""
        lib.moco_session_cancel(self._open_handle())

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<moco.Session, closed>"
        task, classes = self._asked()
        return f"<moco.Session to {task.name.lower().replace('_', '-')} {classes} classes>"

    def _options(self, **given: Any) -> _abi.moco_session_options:
        """Options as C reads them, and the callback, which serves whatever call is running."""
        options = _abi.moco_session_options(struct_size=ctypes.sizeof(_abi.moco_session_options))
        for name in ("device", "checkpoint"):
            setattr(options, name, None if given[name] is None else text(given[name], name))
        options.threads = 0 if given["threads"] is None else whole(given["threads"], "threads", least=1)
        running: Dict[str, Background[SessionProgress]] = {}
        self._running = running

        def told(progress: Any, _user: Any) -> int:
            call = running.get("call")
            return 0 if call is None else call.tell(lambda: _progress(progress.contents))

        self._callback = _abi.moco_session_callback(told)
        options.progress = self._callback
        return options

    def _own(self, pointer: Any) -> None:
        handle = Handle(pointer, lib.moco_session_free)
        # The library calls it as long as the session is there, also after close() while a call runs.
        handle.alive = self._callback
        super().__init__(handle)

    def _asked(self) -> Tuple[_samples.Task, int]:
        handle = self._open_handle()
        return _samples.Task(lib.moco_session_task(handle)), int(lib.moco_session_classes(handle))

    def _call(
        self, function: Callable[[Handle], None], readers: Sequence[_samples.Reader], progress: Optional[OnSessionProgress]
    ) -> None:
        handle = self._open_handle()
        call: "Background[SessionProgress]" = Background(progress, "moco-session")
        if self._running.setdefault("call", call) is not call:
            raise MocoError(Code.INVALID_ARGUMENT, "this session is busy with another call")
        try:
            call.run(lambda: function(handle))
        except MocoError:
            for reader in readers:
                if reader.failed is not None:
                    raise reader.failed from None
            raise
        finally:
            del self._running["call"]


def _progress(p: Any) -> SessionProgress:
    counts = (p.step, p.steps, p.epoch, p.epochs, p.images, p.images_total)
    return SessionProgress(Event(p.event), *counts, p.loss, p.learning_rate, p.metric, p.best_metric)
