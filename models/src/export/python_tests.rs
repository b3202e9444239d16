//! What Python's own `pickle` and `zipfile` make of the exports: neither numpy nor PyTorch is needed, their classes are
//! played by small ones that keep what they are given.

use std::path::Path;
use std::process::Command;

use super::{detectron2, torchvision};
use crate::arch::ArchSpec;
use crate::init::initialise;

const PRELUDE: &str = r#"
import collections, json, pickle, struct, sys, zipfile
export, reference = sys.argv[1:]
raw = open(reference, "rb").read()
size = struct.unpack("<Q", raw[:8])[0]
header = json.loads(raw[8:8 + size]); header.pop("__metadata__")
expected = {n: (tuple(t["shape"]), t["dtype"], raw[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]]) for n, t in header.items()}
"#;

const READ_DETECTRON2: &str = r#"
class Kept:
    def __init__(self, *args): self.args = args
    def __setstate__(self, state): self.state = state
def reconstruct(kind, shape, code):
    assert (kind, shape, code) == (ndarray, (0,), b"b")
    return kind()
class ndarray(Kept): pass
class dtype(Kept): pass
class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        return {("numpy.core.multiarray", "_reconstruct"): reconstruct, ("numpy", "ndarray"): ndarray, ("numpy", "dtype"): dtype}[module, name]
with open(export, "rb") as file: content = Unpickler(file).load()
assert list(content) == ["model", "__author__", "matching_heuristics"]
assert content["__author__"] == "MOCO" and content["matching_heuristics"] is True
def name(n):
    n = n if "layer" in n else "stem." + n
    for t in (1, 2, 3, 4): n = n.replace("layer%d" % t, "res%d" % (t + 1))
    for t in (1, 2, 3): n = n.replace("bn%d" % t, "conv%d.norm" % t)
    return n.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
assert set(content["model"]) == {name(n) for n in expected}
for n, (shape, kind, data) in expected.items():
    version, got_shape, got_dtype, fortran, got_data = content["model"][name(n)].state
    assert (version, got_shape, fortran, got_data) == (1, shape, False, data), n
    assert got_dtype.args == ({"F32": "f4", "I64": "i8"}[kind], False, True) and got_dtype.state == (3, "<", None, None, None, -1, -1, 0)
print("ok", len(expected))
"#;

const READ_TORCHVISION: &str = r#"
archive = zipfile.ZipFile(export)
assert archive.testzip() is None
assert archive.read("archive/byteorder") == b"little" and archive.read("archive/version") == b"3\n"
class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"): return collections.OrderedDict
        if module == "torch" and name.endswith("Storage"): return name
        return {("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, stride, grad, hooks: (storage, offset, shape, stride, grad, hooks)}[module, name]
    def persistent_load(self, key):
        tag, kind, name, device, numel = key
        assert tag == "storage" and device == "cpu"
        return kind, numel, archive.read("archive/data/" + name)
state = Unpickler(archive.open("archive/data.pkl")).load()
assert type(state) is collections.OrderedDict and set(state) == set(expected)
for n, (shape, kind, data) in expected.items():
    (storage, numel, got), offset, got_shape, stride, grad, hooks = state[n]
    step, strides = 1, []
    for side in reversed(shape): strides.insert(0, step); step *= side
    assert (storage, numel, got) == ({"F32": "FloatStorage", "I64": "LongStorage"}[kind], step, data), n
    assert (offset, got_shape, stride, grad, hooks) == (0, shape, tuple(strides), False, {}), n
print("ok", len(expected))
"#;

/// Runs a program; a ResNet-18 without `fc` has 120 tensors.
fn python(program: &str, export: &Path, reference: &Path) {
    let output =
        Command::new("python3").arg("-c").arg(format!("{PRELUDE}{program}")).args([export, reference]).output();
    let output = output.expect("this test needs python3 on the path, as the whole project does");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.trim() == "ok 120", "{out}{err}");
}

#[test]
fn python_reads_both_exports() {
    let folder = tempfile::tempdir().unwrap();
    let graph = ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") }.build().unwrap();
    let mut weights = initialise(&graph, 1);
    weights.buffers.iter_mut().enumerate().for_each(|(i, v)| *v += i as f32);
    let [reference, pkl, pth] = ["a.safetensors", "a.pkl", "a.pth"].map(|name| folder.path().join(name));
    torchvision(&reference, &graph, &weights, None).unwrap();
    detectron2(&pkl, &graph, &weights).unwrap();
    torchvision(&pth, &graph, &weights, None).unwrap();
    python(READ_DETECTRON2, &pkl, &reference);
    python(READ_TORCHVISION, &pth, &reference);
}
