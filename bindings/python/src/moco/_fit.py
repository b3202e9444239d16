"""One fit of a head: its options and its progress."""

import ctypes
from typing import Any, Callable, NamedTuple, Optional, Sequence

from . import _abi
from ._background import Background
from ._library import Handle, lib, text, whole


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
    """Calls `function(*arguments, out)`, whose last argument is of `options()`, and owns the head it gives."""
    call: "Background[Progress]" = Background(progress, "moco-fit")

    def epoch_done(c_progress: Any, _user: Any) -> int:
        p = c_progress.contents
        return call.tell(lambda: Progress(bool(p.sweeping), p.epoch, p.epochs, p.loss))

    def fit() -> Handle:
        out = ctypes.POINTER(_abi.moco_head)()
        function(*arguments, out)
        return Handle(out, lib.moco_head_free)

    arguments[-1].progress = _abi.moco_progress_callback(epoch_done)
    return call.run(fit)
