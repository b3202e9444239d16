"""The declarations are moco.h's, and the package is whole."""

import ast
import ctypes
import inspect
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import moco
from moco import _abi, _library


def _structs():
    named = inspect.getmembers(_abi, inspect.isclass)
    return {name: kind for name, kind in named if issubclass(kind, ctypes.Structure) and hasattr(kind, "_fields_")}


def test_structs_and_constants_are_laid_out_as_a_c_compiler_lays_them_out(prefix, tmp_path):
    if shutil.which("cc") is None:
        pytest.fail("no C compiler: `cargo xtask setup` provides one")
    lines, expected = [], []
    for name, kind in _structs().items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(kind)}")
        for field, of in kind._fields_:
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
            )
            expected.append(f"{name}.{field} {getattr(kind, field).offset} {ctypes.sizeof(of)}")
    for name, value in vars(_abi).items():
        if name.startswith("MOCO_"):
            lines.append(f'printf("{name} %d\\n", (int){name});')
            expected.append(f"{name} {value}")
    assert len(lines) > 40
    source = tmp_path / "layout.c"
    source.write_text("#include <stdio.h>\n#include <moco.h>\nint main(void) {" + "\n".join(lines) + "return 0; }")
    subprocess.run(["cc", "-std=c99", "-I", prefix / "include", source, "-o", tmp_path / "layout"], check=True)
    printed = subprocess.run([tmp_path / "layout"], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert printed.splitlines() == expected


def test_every_function_of_the_header_is_declared_and_in_the_library(prefix):
    header = (prefix / "include/moco.h").read_text()
    assert len(_abi.FUNCTIONS) > 30
    for name in _abi.FUNCTIONS:
        assert f"{name}(" in header
        assert hasattr(_library.lib, name)
    symbols = subprocess.run(["nm", "-D", "--defined-only", moco.library_path()], stdout=subprocess.PIPE, text=True)
    exported = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert exported == set(_abi.FUNCTIONS), "exported, but not declared, or the other way round"


def test_functions_that_can_fail_raise():
    failing = [n for n, (result, _) in _abi.FUNCTIONS.items() if result is ctypes.POINTER(_abi.moco_error)]
    assert "moco_backbone_open" in failing and "moco_error_free" not in failing
    for name in failing:
        assert getattr(_library.lib, name).errcheck is _library._raise


def test_every_code_of_the_header_has_a_name():
    codes = {v for n, v in vars(_abi).items() if n.startswith("MOCO_CODE_") and n != "MOCO_CODE_OK"}
    assert codes == {int(code) for code in moco.Code}


def test_the_wheel_carries_its_libraries_licences_and_types():
    files = {str(file) for file in metadata.files("libmoco")}
    assert {"moco/lib/libmoco.so", "moco/lib/libonnxruntime.so.1", "moco/py.typed"} <= files
    licences = {Path(file).name for file in files if "/licenses/" in file}
    assert licences == {"LICENSE-MIT", "LICENSE-APACHE", "LICENSE", "ThirdPartyNotices.txt"}
    assert moco.__version__ == moco.library_version() == metadata.version("libmoco")
    assert Path(moco.library_path()).parent.parent == Path(moco.__file__).parent


def test_the_sources_are_python_3_9():
    for path in Path(moco.__file__).parent.glob("*.py"):
        ast.parse(path.read_text(), str(path), feature_version=(3, 9))


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_a_libmoco_that_cannot_be_loaded_is_named(tmp_path, content):
    path = tmp_path / "libother.so"
    if content is not None:
        path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", "import moco"],
        env={"MOCO_LIBRARY": str(path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 1
    assert f"ImportError: cannot load {path}" in done.stderr and "unset MOCO_LIBRARY" in done.stderr


@pytest.mark.parametrize(
    "version, abi, expected",
    [
        ("9.8.7", _abi.ABI_VERSION, "is libmoco 9.8.7, this package is for"),
        (_abi.VERSION, 77, f"has ABI 77, this package is for {_abi.ABI_VERSION}"),
    ],
)
def test_a_libmoco_of_another_version_is_refused(tmp_path, version, abi, expected):
    source, library = tmp_path / "other.c", tmp_path / "libmoco.so"
    source.write_text(
        f'const char *moco_version(void) {{ return "{version}"; }}\nunsigned moco_abi_version(void) {{ return {abi}; }}'
    )
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    done = subprocess.run(
        [sys.executable, "-c", "import moco"], env={"MOCO_LIBRARY": str(library)}, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 1 and expected in done.stderr
