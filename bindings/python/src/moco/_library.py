"""libmoco itself: found, loaded, its functions declared, its errors raised, its objects owned."""

import ctypes
import enum
import os
import sys
from pathlib import Path
from typing import Any, Callable, Optional, Union

from . import _abi

#: Names another libmoco than the one in the package.
VARIABLE = "MOCO_LIBRARY"

_NAME = "libmoco.dylib" if sys.platform == "darwin" else "libmoco.so"


class Code(enum.IntEnum):
    """Kind of a `MocoError`."""

    INVALID_ARGUMENT = _abi.MOCO_CODE_INVALID_ARGUMENT
    """An argument is out of range, or does not fit another one."""
    IO = _abi.MOCO_CODE_IO
    """A file is missing, or cannot be read or written."""
    FORMAT = _abi.MOCO_CODE_FORMAT
    """A file is damaged or not of the kind that was expected."""
    RUNTIME = _abi.MOCO_CODE_RUNTIME
    """ONNX Runtime was not found or cannot be used."""
    IMAGE = _abi.MOCO_CODE_IMAGE
    """An image cannot be decoded, or is not what the backbone's card asks for."""
    CANCELLED = _abi.MOCO_CODE_CANCELLED
    """The progress callback asked to stop."""
    INTERNAL = _abi.MOCO_CODE_INTERNAL
    """A fault inside libmoco."""


class MocoError(Exception):
    """What libmoco reported."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        #: What is wrong, what was expected, and what to do.
        self.message = message

    def __str__(self) -> str:
        return self.message


class Handle:
    """Owns one object of libmoco and frees it when nobody refers to it any more.

    A call holds a reference while it runs, and so does every array over the object's memory. So neither `close()` in
    another thread nor a forgotten array can leave a pointer to freed memory behind.
    """

    __slots__ = ("_as_parameter_", "_free", "alive")

    def __init__(self, pointer: Any, free: Callable[[Any], None]) -> None:
        #: What ctypes hands to C where a handle is given.
        self._as_parameter_ = pointer
        self._free = free
        #: What C may still use as long as the object is there, e.g. a callback.
        self.alive: Any = None

    def __del__(self) -> None:
        self._free(self._as_parameter_)


class Owner:
    """Base of what the package gives out: a handle until `close()`."""

    _handle: Optional[Handle]

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def close(self) -> None:
        """Gives the object up; memory is freed once running calls and arrays over it are done. May be repeated."""
        self._handle = None

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._handle is None

    def _open_handle(self) -> Handle:
        handle = self._handle
        if handle is None:
            raise ValueError(f"this moco.{type(self).__name__} is closed")
        return handle

    def __reduce__(self) -> Any:
        name = type(self).__name__
        raise TypeError(f"a moco.{name} cannot be pickled or copied: it belongs to this process; open its file there")


class _Threads:
    """Threads that libmoco starts at the first fit or prediction and keeps."""

    started = False
    lost = False

    @classmethod
    def forked(cls) -> None:
        cls.lost = cls.started


os.register_at_fork(after_in_child=_Threads.forked)


def need_threads() -> None:
    """Before a call that waits for them: in a forked child it would wait for ever."""
    if _Threads.lost:
        raise RuntimeError(
            "libmoco's threads did not survive os.fork(): a head was fitted or used before it; start worker processes "
            "by `spawn` or `forkserver`, or before the first fit"
        )
    _Threads.started = True


def library_path() -> str:
    """File of the libmoco that is used: `MOCO_LIBRARY`, or the one in the package."""
    return os.environ.get(VARIABLE) or str(Path(__file__).resolve().parent / "lib" / _NAME)


def library_version() -> str:
    """Version of the libmoco that is loaded."""
    version: bytes = lib.moco_version()
    return version.decode()


def text(value: Union[str, "os.PathLike[str]"], name: str) -> bytes:
    """A string or path as moco.h wants it.

    A string that C would cut short, or that is not text, is refused: another file must not be opened in its place.
    """
    plain = os.fspath(value)
    if not isinstance(plain, str):
        raise TypeError(f"`{name}` must be a str or a path, not {type(value).__name__}")
    if "\0" in plain:
        raise ValueError(f"`{name}` holds a NUL character: {plain!r}")
    try:
        return plain.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`{name}` is not UTF-8: {plain!r}") from None


def whole(value: object, name: str, bits: int = 32, least: int = 0) -> int:
    """A whole number in the range of C's type, which ctypes would cut off silently."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"`{name}` must be a whole number, not {type(value).__name__}")
    number = int(value.__index__())
    if not least <= number < 1 << bits:
        raise ValueError(f"`{name}` is {number}, expected {least} to {(1 << bits) - 1}")
    return number


def read(text: Optional[bytes]) -> str:
    """A string that a getter lends."""
    return "" if text is None else text.decode()


def _raise(error: Any, _function: Any, _arguments: Any) -> None:
    if error:
        code, message = lib.moco_error_code(error), read(lib.moco_error_message(error))
        lib.moco_error_free(error)
        known = code in Code._value2member_map_
        raise MocoError(Code(code) if known else Code.INTERNAL, message)


def _load() -> Any:
    path = library_path()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        hint = f"unset {VARIABLE} or let it name a libmoco" if os.environ.get(VARIABLE) else "the package is incomplete"
        raise ImportError(f"cannot load {path}: {error}; {hint}", name="moco", path=path) from error
    library.moco_version.restype = ctypes.c_char_p
    found = library.moco_version().decode()
    if found.split(".")[:2] != _abi.VERSION.split(".")[:2]:
        raise ImportError(f"{path} is libmoco {found}, this package is for {_abi.VERSION}", name="moco", path=path)
    library.moco_abi_version.restype = ctypes.c_uint32
    if (abi := library.moco_abi_version()) != _abi.ABI_VERSION:
        raise ImportError(f"{path} has ABI {abi}, this package is for {_abi.ABI_VERSION}", name="moco", path=path)
    for name, (result, arguments) in _abi.FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
        # Every function that can fail raises, unless it is one of those that look into an error.
        if result is ctypes.POINTER(_abi.moco_error):
            function.errcheck = _raise
    return library


lib = _load()
