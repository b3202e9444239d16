"""One fit of a head: its options, and the thread it runs in."""

import ctypes
import queue
import threading
from typing import Any, Callable, List, NamedTuple, Optional, Sequence

from . import _abi
from ._library import Handle, lib, need_threads, text, whole


class Progress(NamedTuple):
    """How far a fit is."""

    sweeping: bool
    """While learning rates are tried, before the head itself is fitted."""
    epoch: int
    """Epochs done in this phase."""
    epochs: int
    """Epochs of this phase."""
    loss: float
    """Mean cross-entropy of the last epoch, in nats."""


#: Called after each epoch; `False` cancels.
OnProgress = Callable[[Progress], Optional[bool]]


def options(
    classes: int,
    class_names: Optional[Sequence[str]],
    epochs: Optional[int],
    batch: Optional[int],
    learning_rate: Optional[float],
    weight_decay: float,
    seed: int,
    keep_scale: bool,
) -> _abi.moco_fit_options:
    """Options as C reads them. 0 means the default there and None here, so that a 0 that somebody meant is an error."""
    made = _abi.moco_fit_options(struct_size=ctypes.sizeof(_abi.moco_fit_options))
    if class_names is not None:
        if isinstance(class_names, str) or len(class_names) != classes:
            raise ValueError(f"`class_names` must hold {classes} names, one a class, not {class_names!r}")
        names = [text(name, f"class_names[{i}]") for i, name in enumerate(class_names)]
        made.class_names = (ctypes.c_char_p * len(names))(*names)
    made.seed = whole(seed, "seed", bits=64)
    made.epochs = 0 if epochs is None else whole(epochs, "epochs", least=1)
    made.batch = 0 if batch is None else whole(batch, "batch", least=1)
    if learning_rate is not None and not learning_rate > 0:
        raise ValueError(f"`learning_rate` is {learning_rate}, expected more than 0, or None to try several")
    made.learning_rate = 0.0 if learning_rate is None else float(learning_rate)
    made.weight_decay = float(weight_decay)
    made.keep_scale = 1 if keep_scale else 0
    return made


def run(function: Any, *arguments: Any, progress: Optional[OnProgress]) -> Handle:
    """Calls `function(*arguments, out)`, whose last argument is of `options()`, and owns the head it gives.

    It runs in a thread of its own while the caller's thread serves `progress` and Ctrl-C. Were the callback run inside of
    the call, Python would raise KeyboardInterrupt in it before its first line, where nothing can catch it, and ctypes
    would drop it.
    """
    need_threads()
    told: "queue.SimpleQueue[Optional[Progress]]" = queue.SimpleQueue()
    answers: "queue.SimpleQueue[bool]" = queue.SimpleQueue()
    stop = threading.Event()
    fitted: List[Handle] = []
    failed: List[BaseException] = []

    def epoch_done(c_progress: Any, _user: Any) -> int:
        if progress is not None and not stop.is_set():
            p = c_progress.contents
            told.put(Progress(bool(p.sweeping), p.epoch, p.epochs, p.loss))
            return 0 if answers.get() else 1
        return 1 if stop.is_set() else 0

    def work() -> None:
        try:
            out = ctypes.POINTER(_abi.moco_head)()
            function(*arguments, out)
            fitted.append(Handle(out, lib.moco_head_free))
        except BaseException as error:
            failed.append(error)
        finally:
            told.put(None)

    arguments[-1].progress = _abi.moco_progress_callback(epoch_done)
    thread = threading.Thread(target=work, name="moco-fit", daemon=True)
    thread.start()
    try:
        while (now := told.get()) is not None:
            answers.put(progress is None or progress(now) is not False)
    except BaseException:
        stop.set()
        answers.put(False)
        thread.join()
        raise
    thread.join()
    if failed:
        raise failed[0]
    return fitted[0]
