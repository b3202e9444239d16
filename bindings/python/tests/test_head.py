"""Heads: fitted, saved, opened, cancelled."""

import subprocess
import sys
import threading
import textwrap

import numpy as np
import pytest

import moco
from conftest import allocated


@pytest.fixture(scope="module")
def labelled(backbone, images):
    """Features and labels of two classes."""
    paths = [sorted((images / "train" / name).glob("*.jpg"))[:12] for name in ("Banana", "Kiwi")]
    return backbone.extract(paths[0] + paths[1]), np.repeat([0, 1], [len(paths[0]), len(paths[1])])


@pytest.fixture(scope="module")
def head(labelled):
    return moco.Head.fit(*labelled, class_names=["banana", "kiwi"], epochs=40)


def test_a_head_tells_classes_apart_and_says_what_it_is(head, labelled, backbone):
    features, labels = labelled
    predicted = head.predict(features)
    assert np.array_equal(predicted.labels, labels)
    assert predicted.probabilities.shape == (len(labels), 2)
    assert np.allclose(predicted.probabilities.sum(1), 1, atol=1e-5)
    assert (head.classes, head.dim, head.tap, head.class_names) == (2, backbone.dim(), "pooled", ("banana", "kiwi"))
    assert repr(head) == f"<moco.Head: {backbone.dim()} values of pooled → 2 classes: banana, kiwi>"


def test_a_saved_head_is_the_same_head(head, labelled, tmp_path):
    path = tmp_path / "head.safetensors"
    head.save(path)
    with moco.Head.open(path) as opened:
        assert repr(opened) == repr(head)
        for one, other in zip(opened.predict(labelled[0]), head.predict(labelled[0])):
            assert one.tobytes() == other.tobytes()
    again = tmp_path / "again.safetensors"
    moco.Head.open(path).save(again)
    assert path.read_bytes() == again.read_bytes()
    with pytest.raises(ValueError, match="this moco.Head is closed"):
        opened.save(path)


def test_arrays_and_features_give_the_same_weights(labelled):
    features, labels = labelled
    options = {"epochs": 20, "seed": 5, "learning_rate": 0.1}
    one, other = moco.Head.fit(features, labels, **options), moco.Head.fit(features["pooled"], labels, **options)
    assert (one.tap, other.tap, other.class_names) == ("pooled", "", ())
    rows = np.asarray(features)
    for kind in [labels.astype(np.int64), labels.astype(np.uint8), labels.tolist()]:
        fitted = moco.Head.fit(rows[:, :], kind, **options)
        assert np.array_equal(fitted.predict(rows).probabilities, one.predict(features).probabilities)
    assert np.array_equal(other.predict(rows[::2]).labels, one.predict(rows).labels[::2])
    different = moco.Head.fit(rows, labels, epochs=20, seed=6, learning_rate=0.1)
    assert not np.array_equal(different.predict(rows).probabilities, one.predict(rows).probabilities)


def test_a_map_is_flattened_and_its_tap_chosen_by_name(labelled):
    features, labels = labelled
    head = moco.Head.fit(features, labels, tap="c5", epochs=5, learning_rate=0.01)
    assert head.tap == "c5" and head.dim == features["c5"][0].size
    assert head.predict(features).labels.shape == labels.shape


def test_progress_is_told_in_the_callers_thread(labelled):
    told = []
    moco.Head.fit(*labelled, epochs=6, progress=lambda p: told.append((p, threading.current_thread())))
    assert all(thread is threading.current_thread() for _, thread in told)
    final = [p for p, _ in told if not p.sweeping]
    assert [p.epoch for p in final] == [1, 2, 3, 4, 5, 6] and final[-1].epochs == 6
    assert any(p.sweeping for p, _ in told) and all(np.isfinite(p.loss) for p, _ in told)
    told.clear()
    moco.Head.fit(*labelled, epochs=3, learning_rate=0.1, progress=lambda p: told.append(p))
    assert not any(p.sweeping for p in told), "a learning rate that is given is not searched"


def test_false_cancels_and_what_the_callback_raises_is_raised(labelled):
    seen = []

    def cancel(progress):
        seen.append(progress)
        return len(seen) < 3

    with pytest.raises(moco.MocoError, match="cancelled") as caught:
        moco.Head.fit(*labelled, progress=cancel)
    assert caught.value.code is moco.Code.CANCELLED and len(seen) == 3

    class Surprise(Exception):
        pass

    def fail(progress):
        raise Surprise

    with pytest.raises(Surprise):
        moco.Head.fit(*labelled, progress=fail)
    assert moco.Head.fit(*labelled, epochs=2).classes == 2


@pytest.mark.parametrize("callback", ["None", "lambda p: None"])
def test_ctrl_c_stops_a_fit(callback):
    program = textwrap.dedent(f"""
        import numpy as np, os, signal, sys, threading, moco
        rows = np.random.default_rng(0).normal(size=(512, 256)).astype(np.float32)
        try:
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            moco.Head.fit(rows, np.arange(512) % 8, epochs=10_000_000, learning_rate=0.01, progress={callback})
        except KeyboardInterrupt:
            sys.exit(42)
    """)
    done = subprocess.run([sys.executable, "-c", program], timeout=60, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 42 and done.stderr == ""


ROWS = np.zeros((4, 8), np.float32)
LABELS = [0, 1, 0, 1]


@pytest.mark.parametrize(
    "features, labels, options, error, message",
    [
        (ROWS.astype(np.float64), LABELS, {}, TypeError, "features are of float64, expected float32"),
        (ROWS[0], LABELS, {}, ValueError, r"features have the shape \(8,\)"),
        (ROWS, LABELS[:3], {}, ValueError, "there are 4 rows of features, but 3 labels"),
        (ROWS, [0.0, 1.0, 0.0, 1.0], {}, TypeError, "labels are of float64"),
        (ROWS, [0, -1, 0, 1], {}, ValueError, "labels go from -1 to 1"),
        (ROWS, [LABELS], {}, ValueError, r"labels have the shape \(1, 4\)"),
        (ROWS, LABELS, {"classes": 1}, moco.MocoError, "classes"),
        (ROWS, [0, 1, 0, 2], {"classes": 2}, moco.MocoError, "label 3"),
        (ROWS, LABELS, {"classes": 2.0}, TypeError, "`classes`"),
        (ROWS, LABELS, {"class_names": ["a"], "classes": 2}, ValueError, "`class_names` must hold 2 names"),
        (ROWS, LABELS, {"class_names": "ab"}, ValueError, "`class_names` must hold 2 names"),
        (ROWS, LABELS, {"class_names": ["a", 7]}, TypeError, "str"),
        (ROWS, LABELS, {"epochs": 0}, ValueError, "`epochs` is 0"),
        (ROWS, LABELS, {"epochs": True}, TypeError, "`epochs`"),
        (ROWS, LABELS, {"batch": -1}, ValueError, "`batch` is -1"),
        (ROWS, LABELS, {"seed": 1 << 64}, ValueError, "`seed`"),
        (ROWS, LABELS, {"learning_rate": 0}, ValueError, "`learning_rate` is 0"),
        (ROWS, LABELS, {"learning_rate": float("nan")}, ValueError, "`learning_rate` is nan"),
        (ROWS, LABELS, {"weight_decay": -1.0}, moco.MocoError, "weight_decay"),
        (ROWS, LABELS, {"tap": "c5"}, ValueError, "`tap` chooses among moco.Features"),
        (np.full((4, 8), np.nan, np.float32), LABELS, {}, moco.MocoError, "finite"),
    ],
)
def test_fits_that_cannot_be_are_named(features, labels, options, error, message):
    with pytest.raises(error, match=message):
        moco.Head.fit(features, labels, **options)


def test_features_that_do_not_fit_the_head_are_refused(head, labelled, tmp_path, backbone_path):
    with pytest.raises(moco.MocoError, match="`dim` is 8") as caught:
        head.predict(ROWS)
    assert caught.value.code is moco.Code.INVALID_ARGUMENT
    with pytest.raises(TypeError, match="expected float32"):
        head.predict(np.zeros((1, head.dim)))
    maps = moco.Backbone(backbone_path, taps="c5").extract(np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(KeyError, match="pooled"):
        head.predict(maps)
    other = bytearray(backbone_path.read_bytes())
    other[-2] ^= 1
    (tmp_path / "other.safetensors").write_bytes(other)
    with pytest.raises(moco.MocoError, match="fitted on another backbone"):
        head.predict(moco.Backbone(tmp_path / "other.safetensors").extract(np.zeros((40, 40, 3), np.uint8)))
    with pytest.raises(moco.MocoError) as caught:
        head.save(tmp_path / "absent/head.safetensors")
    assert caught.value.code is moco.Code.IO
    with pytest.raises(moco.MocoError, match="not a head") as caught:
        moco.Head.open(backbone_path)
    assert caught.value.code is moco.Code.FORMAT
    assert head.predict(np.zeros((0, head.dim), np.float32)).probabilities.shape == (0, 2)


def test_objects_of_a_process_are_not_pickled(head, backbone):
    import copy
    import pickle

    for thing in (head, backbone):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(thing)
        with pytest.raises(TypeError, match="cannot be pickled"):
            copy.copy(thing)


def test_a_forked_child_extracts_and_refuses_what_would_wait_for_ever(backbone_path):
    program = textwrap.dedent("""
        import numpy as np, os, sys, moco
        rows, image = np.eye(64, dtype=np.float32), np.zeros((40, 40, 3), np.uint8)
        backbone = moco.Backbone(sys.argv[1])
        expected = backbone.extract(image)[0].copy()
        def child(work):
            if os.fork() == 0:
                work()
                os._exit(0)
            return os.waitstatus_to_exitcode(os.wait()[1])
        def refused():
            try:
                head.predict(rows)
            except RuntimeError as error:
                assert "did not survive os.fork()" in str(error)
                os._exit(7)
        def extract():
            assert np.array_equal(backbone.extract(image)[0], expected)
            backbone.close()
        print(child(lambda: moco.Head.fit(rows, np.arange(64) % 2, epochs=1)))
        head = moco.Head.fit(rows, np.arange(64) % 2, epochs=1)
        print(child(extract), child(refused))
    """)
    done = subprocess.run([sys.executable, "-c", program, backbone_path], timeout=60, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == ["0", "0", "7"]


def test_messages_reach_a_logger_until_told_otherwise(backbone_path):
    received = []
    moco.set_log(lambda level, message: received.append((level, message)))
    try:
        program = "import moco, sys, logging; m = []; moco.set_log(lambda *a: m.append(a)); moco.Backbone(sys.argv[1]); print(m)"
        done = subprocess.run([sys.executable, "-c", program, backbone_path], stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0 and "ONNX Runtime from" in done.stdout
        with pytest.raises(TypeError, match="must be callable"):
            moco.set_log("info")
    finally:
        moco.set_log(None)
    received.clear()
    moco.Backbone(backbone_path)
    assert not received


def test_a_hundred_heads_do_not_grow_the_process(labelled):
    def use():
        moco.Head.fit(*labelled, epochs=1, learning_rate=0.1, progress=lambda p: None).predict(labelled[0])
        with pytest.raises(moco.MocoError):
            moco.Head.fit(*labelled, epochs=1, learning_rate=0.1, progress=lambda p: False)

    for _ in range(20):
        use()
    before = allocated()
    for _ in range(100):
        use()
    assert allocated() - before < 32_000, "320 bytes a fit would have been lost"
