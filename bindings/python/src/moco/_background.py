"""A call of libmoco in a thread of its own, while the caller's thread serves progress and Ctrl-C.

Were a callback run inside of the call, Python would raise KeyboardInterrupt in it before its first line, where nothing can
catch it, and ctypes would drop it.
"""

import queue
import threading
from typing import Any, Callable, Generic, List, Optional, TypeVar

from ._library import need_threads

T = TypeVar("T")
P = TypeVar("P")


class Background(Generic[P]):
    """One call at a time. `progress`: called in the caller's thread with what `tell()` was given; `False` stops."""

    def __init__(self, progress: Optional[Callable[[P], Optional[bool]]], name: str) -> None:
        need_threads()
        self._progress = progress
        self._name = name
        self._told: "queue.SimpleQueue[Optional[Any]]" = queue.SimpleQueue()
        self._answers: "queue.SimpleQueue[bool]" = queue.SimpleQueue()
        self._stop = threading.Event()

    def tell(self, make: Callable[[], P]) -> int:
        """What libmoco's callback answers: 0 to go on, 1 to stop."""
        if self._progress is not None and not self._stop.is_set():
            self._told.put(make())
            return 0 if self._answers.get() else 1
        return 1 if self._stop.is_set() else 0

    def run(self, call: Callable[[], T]) -> T:
        """Calls, and gives or raises what the call did, or what the caller's thread met meanwhile."""
        done: List[T] = []
        failed: List[BaseException] = []

        def work() -> None:
            try:
                done.append(call())
            except BaseException as error:
                failed.append(error)
            finally:
                self._told.put(None)

        thread = threading.Thread(target=work, name=self._name, daemon=True)
        thread.start()
        try:
            while (now := self._told.get()) is not None:
                self._answers.put(self._progress is None or self._progress(now) is not False)
        except BaseException:
            self._stop.set()
            self._answers.put(False)
            thread.join()
            raise
        thread.join()
        if failed:
            raise failed[0]
        return done[0]
