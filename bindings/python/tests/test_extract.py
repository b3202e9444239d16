"""Features: the same as everywhere, without needless copies, and clear refusals."""

import gc
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import moco
from conftest import allocated, png


def test_features_are_those_of_the_program_to_the_last_bit(backbone_path, images, prefix, tmp_path):
    out = tmp_path / "features.npy"
    command = [prefix / "bin/moco-infer", "embed", images / "test", "--backbone", backbone_path, "--out", out]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    names = Path(f"{out}.files.txt").read_text().splitlines()
    expected = np.load(out)
    assert len(names) == len(expected) > 100
    for threads, batch in [(None, None), (1, 3), (3, 1)]:
        with moco.Backbone(backbone_path, threads=threads, batch=batch) as backbone:
            features = backbone.extract([images / "test" / name for name in names])
        assert features["pooled"].tobytes() == expected.tobytes()


def test_every_tap_is_that_of_the_program(backbone, backbone_path, prefix, tmp_path, random):
    pixels = random.integers(0, 256, (70, 90, 3), np.uint8)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(png(pixels))
    out = tmp_path / "features.safetensors"
    command = [prefix / "bin/moco-infer", "embed", tmp_path / "images", "--backbone", backbone_path, "--out", out]
    subprocess.run([*command, "--tap", "pooled", "--tap", "c5"], check=True, stdout=subprocess.DEVNULL)
    features, file = backbone.extract(pixels), out.read_bytes()
    assert features["c5"].ndim == 4 and features["c5"].shape[:2] == (1, backbone.dim("c5"))
    for tap in features.taps:
        assert features[tap].tobytes() in file


def test_a_backbone_is_opened_for_grey_images_as_by_the_program(backbone, backbone_path, prefix, tmp_path, random):
    pixels = random.integers(0, 256, (70, 90), np.uint8)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(png(pixels))
    out = tmp_path / "features.npy"
    command = [prefix / "bin/moco-infer", "embed", tmp_path / "images", "--backbone", backbone_path, "--out", out]
    subprocess.run([*command, "--channels", "1"], check=True, stdout=subprocess.DEVNULL)
    with moco.Backbone(backbone_path, channels=1) as grey:
        assert grey.card["arch"]["in_channels"] == 1 and any("1 channels" in note for note in grey.card["notes"])
        features = grey.extract(pixels)["pooled"]
        assert features.tobytes() == np.load(out).tobytes()
        with pytest.raises(moco.MocoError, match="`channels` = 5"):
            grey.extract(random.integers(0, 256, (70, 90, 5), np.uint8))
    # As the colour network answers grey that is repeated, but for one mean and deviation instead of three.
    colour = backbone.extract(np.repeat(pixels[..., None], 3, 2))["pooled"]
    assert 0 < np.linalg.norm(features - colour) < 0.5 * np.linalg.norm(colour)


def test_bits_and_inversion_reach_the_library(backbone, random):
    values = random.integers(0, 4096, (50, 40, 3), np.uint16)
    expected = backbone.extract(values, window=(0, 4095), bits=12)["pooled"]
    assert np.allclose(backbone.extract(4095 - values, window=(0, 4095), inverted=True)["pooled"], expected, atol=1e-5)
    with pytest.raises(moco.MocoError, match="12 bits a value"):
        backbone.extract(values, bits=12)
    with pytest.raises(moco.MocoError, match="needs more than 11"):
        backbone.extract(np.maximum(values, 2048), window=(0, 4095), bits=11)
    with pytest.raises(ValueError, match="`bits` is 0"):
        backbone.extract(values, bits=0)
    with pytest.raises(ValueError, match="`bits` is about the values"):
        backbone.extract("a.png", bits=12)


def test_paths_bytes_and_arrays_of_the_same_pixels_give_the_same(backbone, tmp_path, random):
    sizes = [(64, 64), (33, 80), (120, 50)]
    arrays = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    files = [png(array) for array in arrays]
    paths = [tmp_path / f"{i}.png" for i in range(len(files))]
    for path, file in zip(paths, files):
        path.write_bytes(file)
    expected = backbone.extract(arrays)["pooled"]
    assert expected.shape == (3, backbone.dim())
    for given in [
        files,
        [memoryview(f) for f in files],
        paths,
        [str(p) for p in paths],
        iter(paths),
        np.array(paths, object),
    ]:
        assert np.array_equal(backbone.extract(given)["pooled"], expected)
    for i, one in enumerate([arrays[0], files[1], paths[2]]):
        assert np.array_equal(backbone.extract(one)["pooled"], expected[i : i + 1])


def test_arrays_that_are_not_contiguous_mean_what_they_show(backbone, random):
    whole = random.integers(0, 256, (90, 100, 3), np.uint8)
    for view in [
        whole[10:70, 20:95],  # read in place, by its row stride
        whole[:, :, ::-1],
        whole[::-1],
        whole[::2, ::2],
        whole.transpose(1, 0, 2),
        np.asfortranarray(whole),
        np.broadcast_to(whole[:1], (40, 100, 3)),
    ]:
        expected = backbone.extract(np.array(view, order="C"))
        assert np.array_equal(backbone.extract(view)[0], expected[0])
    batch = np.stack([whole, whole[::-1]])
    assert np.array_equal(backbone.extract(batch)[0], backbone.extract([whole, whole[::-1]])[0])


def test_pixels_are_not_copied_where_their_rows_are_whole(random):
    from moco import _images

    whole = random.integers(0, 256, (90, 100, 3), np.uint8)
    for view in [whole, whole[10:70], whole[10:70, 20:95], whole[::3], whole[..., 0].copy(), whole[:1, :1, :]]:
        given = _images.images(view, _images.Values())
        assert given.array[0].data == view.ctypes.data
        assert (given.array[0].height, given.array[0].width) == view.shape[:2]
    copied = _images.images(whole[:, ::-1], _images.Values())
    assert copied.array[0].data != whole[:, ::-1].ctypes.data


def test_features_are_views_that_outlive_their_owner(backbone, random):
    features = backbone.extract(random.integers(0, 256, (2, 64, 64, 3), np.uint8))
    first, second = features["c5"], features[1]
    assert first.ctypes.data == second.ctypes.data, "nothing is copied"
    assert np.asarray(features).ctypes.data == features["pooled"].ctypes.data
    assert not first.flags.writeable and first.dtype == np.float32
    kept = first.copy()
    part = first[1, :, 0]
    del first, second
    features.close()
    with pytest.raises(ValueError, match="this moco.Features is closed"):
        features["c5"]
    del features
    gc.collect()
    filler = [np.full(kept.size, 7.0, np.float32) for _ in range(8)]
    assert np.array_equal(part, kept[1, :, 0]) and filler


def test_features_say_what_they_are(backbone, random):
    features = backbone.extract([random.integers(0, 256, (40, 40, 3), np.uint8)] * 3)
    assert len(features) == 3 and features.taps == ("pooled", "c5")
    assert repr(features).startswith(f"<moco.Features of 3 images: pooled [3, {backbone.dim()}], c5 [3, ")
    assert np.asarray(features, np.float64).dtype == np.float64
    with pytest.raises(KeyError, match="no tap 'c1' among these features, only pooled, c5"):
        features["c1"]
    with pytest.raises(IndexError, match="these features have 2"):
        features[2]
    assert np.array_equal(features[-1], features["c5"])
    nothing = backbone.extract([])
    assert len(nothing) == 0 and nothing["pooled"].shape[0] == 0


def test_a_backbone_says_what_it_is(backbone, backbone_path):
    assert backbone.arch == "resnet18" and backbone.card["arch"]["name"] == "resnet18"
    assert backbone.taps[-1] == "pooled" and backbone.dim("c5") == backbone.dim()
    assert repr(backbone).startswith("<moco.Backbone resnet18 (") and "pooled" in repr(backbone)
    with pytest.raises(moco.MocoError, match="c1") as caught:
        backbone.dim("c9")
    assert caught.value.code == moco.Code.INVALID_ARGUMENT
    folder = moco.Backbone(backbone_path.parent)
    assert folder.card == backbone.card and not folder.closed


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"taps": []}, ValueError, "`taps` is empty"),
        ({"taps": "c9"}, moco.MocoError, "c9"),
        ({"taps": ["a\0b"]}, ValueError, "NUL"),
        ({"threads": 0}, ValueError, "`threads` is 0"),
        ({"threads": 1 << 32}, ValueError, "`threads` is 4294967296"),
        ({"batch": 1.5}, TypeError, "`batch` must be a whole number"),
        ({"channels": 0}, ValueError, "`channels` is 0"),
        ({"channels": 1 << 20}, moco.MocoError, "1048576 channels"),
        ({"calibration": "absent.json"}, moco.MocoError, "absent.json"),
        ({"ort_library": "absent.so"}, moco.MocoError, "absent.so"),
    ],
)
def test_options_that_make_no_sense_are_named(backbone_path, options, error, message):
    with pytest.raises(error, match=message):
        moco.Backbone(backbone_path, **options)


@pytest.mark.parametrize(
    "path, error, message",
    [
        ("absent/backbone", moco.MocoError, "absent/backbone"),
        (b"bytes", TypeError, "`path` must be a str or a path"),
        (None, TypeError, "NoneType"),
        ("a\0b", ValueError, "NUL"),
        ("\udcff", ValueError, "not UTF-8"),
        (Path("hf://owner/name"), ValueError, "give it as a str"),
        ("hf://owner", moco.MocoError, "hf://owner"),
    ],
)
def test_paths_that_cannot_be_are_named(path, error, message):
    with pytest.raises(error, match=message):
        moco.Backbone(path)


def test_files_that_are_no_backbone_are_told_apart(tmp_path, backbone_path):
    rubbish = tmp_path / "rubbish.safetensors"
    rubbish.write_bytes(b"not tensors at all")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(backbone_path.read_bytes()[:5000])
    for path, code in [(rubbish, "FORMAT"), (cut, "FORMAT"), (tmp_path / "absent", "IO")]:
        with pytest.raises(moco.MocoError, match=path.name) as caught:
            moco.Backbone(path)
        assert caught.value.code is moco.Code[code] and caught.value.message == str(caught.value)


GREY = np.zeros((8, 8), np.uint8)


@pytest.mark.parametrize(
    "given, error, message",
    [
        (np.zeros((8, 8, 3)), TypeError, r"images\[0\] is of float64: uint8 is expected"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.int32)], TypeError, r"images\[1\] is of int32"),
        (np.zeros(8, np.uint8), ValueError, r"images\[0\] has the shape \(8,\): height × width"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), ValueError, "images × height × width × channels"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "holds no pixel"),
        ([GREY, "a.png"], TypeError, r"images\[0\] is an array, but images\[1\] is a path"),
        ([GREY, None], TypeError, r"images\[1\] must be a path, bytes or a numpy array, not NoneType"),
        (7, TypeError, "images must be paths, bytes or numpy arrays, not int"),
        (["a\0b"], ValueError, r"`images\[0\]` holds a NUL"),
        (np.zeros((8, 8, 5), np.uint8), moco.MocoError, "5"),
        (b"no image", moco.MocoError, "image 0: not an image"),
    ],
)
def test_images_that_cannot_be_are_named(backbone, given, error, message):
    with pytest.raises(error, match=message):
        backbone.extract(given)


def test_files_that_cannot_be_read_are_named(backbone, pictures, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(pictures[0].read_bytes()[:200])
    with pytest.raises(moco.MocoError, match="broken.jpg") as caught:
        backbone.extract([pictures[0], broken])
    assert caught.value.code is moco.Code.IMAGE
    with pytest.raises(moco.MocoError, match="absent.jpg") as caught:
        backbone.extract(tmp_path / "absent.jpg")
    assert caught.value.code is moco.Code.IO


def test_what_is_closed_says_so(backbone_path, pictures):
    with moco.Backbone(backbone_path) as backbone:
        features = backbone.extract(pictures[:1])
    backbone.close()
    assert backbone.closed and repr(backbone) == "<moco.Backbone, closed>"
    for use in [lambda: backbone.arch, lambda: backbone.extract(pictures), lambda: backbone.dim()]:
        with pytest.raises(ValueError, match="this moco.Backbone is closed"):
            use()
    with features:
        pass
    assert repr(features) == "<moco.Features, closed>"
    with pytest.raises(ValueError, match="this moco.Features is closed"):
        len(features)


def test_a_backbone_closed_by_another_thread_finishes_its_calls(backbone_path, pictures):
    backbone = moco.Backbone(backbone_path)
    expected = backbone.extract(pictures)[0]
    results = []
    threads = [threading.Thread(target=lambda: results.append(backbone.extract(pictures)[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    backbone.close()
    for thread in threads:
        thread.join()
    # A thread that came too late got the error of a closed backbone, which threading prints; the others finished.
    assert all(np.array_equal(result, expected) for result in results)


def test_python_runs_while_features_are_extracted(backbone_path, images):
    backbone = moco.Backbone(backbone_path, threads=1)
    paths = sorted((images / "train").glob("*/*.jpg"))
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=count)
    thread.start()
    before = counted[0]
    backbone.extract(paths)
    during = counted[0] - before
    done.set()
    thread.join()
    assert during > 20, "a held GIL would have let it count once or twice"


def test_threads_share_a_backbone(backbone, pictures):
    expected = backbone.extract(pictures)[0]
    wrong = []

    def work():
        for _ in range(5):
            if not np.array_equal(backbone.extract(pictures)[0], expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_thousand_calls_do_not_grow_the_process(backbone, random):
    pixels = random.integers(0, 256, (32, 32, 3), np.uint8)

    def use():
        features = backbone.extract(pixels)
        features["c5"].sum()
        with pytest.raises(moco.MocoError):
            backbone.dim("c9")

    for _ in range(100):
        use()
    before = allocated()
    for _ in range(1000):
        use()
    assert allocated() - before < 32_000, "32 bytes a call would have been lost"
