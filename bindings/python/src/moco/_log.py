"""Messages of libmoco."""

import atexit
import logging
from typing import Any, Callable, Optional

from . import _abi
from ._library import lib, read

_LEVELS = {
    _abi.MOCO_LOG_LEVEL_ERROR: logging.ERROR,
    _abi.MOCO_LOG_LEVEL_WARN: logging.WARNING,
    _abi.MOCO_LOG_LEVEL_INFO: logging.INFO,
    _abi.MOCO_LOG_LEVEL_DEBUG: logging.DEBUG,
}

_receiver: Optional[Callable[[int, str], object]] = None


def set_log(receiver: Optional[Callable[[int, str], object]]) -> None:
    """Sets who receives libmoco's messages; nobody at first, `None` = nobody again.

    `receiver` gets a level of Python's `logging` and a text, so a logger fits as it is:
    `moco.set_log(logging.getLogger("moco").log)`. It may be called from any thread, several at once.
    """
    global _receiver
    if receiver is not None and not callable(receiver):
        raise TypeError(f"`receiver` must be callable or None, not {type(receiver).__name__}")
    _receiver = receiver
    lib.moco_log_set(_CALLBACK if receiver is not None else _NOBODY, None)


def _told(level: int, message: bytes, _user: Any) -> None:
    receiver = _receiver
    if receiver is not None:
        receiver(_LEVELS.get(level, logging.DEBUG), read(message))


# One that lives as long as the module: a thread of libmoco may be about to call it while another receiver is set.
_CALLBACK = _abi.moco_log_callback(_told)
_NOBODY = _abi.moco_log_callback()

# A thread of libmoco must not enter an interpreter that is going away.
atexit.register(lib.moco_log_set, _NOBODY, None)
