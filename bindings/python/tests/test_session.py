"""Sessions and models: trained, cancelled, resumed, saved, asked; and clear refusals."""

import ctypes
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import moco
from conftest import allocated, png

SIDE = 32


def drawn(index):
    """A square on a ground of noise, its mask and its box. How light it is is its class."""
    random = np.random.default_rng(index)
    image = random.integers(90, 130, (SIDE, SIDE, 3), np.uint8)
    left, top, side, label = 3 + index, 12 - index, 12, index % 2
    image[top : top + side, left : left + side] += np.uint8(100) if label else np.uint8(166)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return image, mask, (left, top, left + side, top + side), label


IMAGES = [drawn(i)[0] for i in range(8)]
TRUTHS = {
    "classify": [drawn(i)[3] for i in range(8)],
    "multi-label": [np.eye(2, dtype=np.uint8)[drawn(i)[3]] for i in range(8)],
    "segment": [drawn(i)[1] for i in range(8)],
    "detect": [moco.Boxes([drawn(i)[2]], [drawn(i)[3]]) for i in range(8)],
}
HEADS = {"classify": "linear", "multi-label": "mlp:8", "segment": "fpn:8", "detect": "fcos:width=8,convs=1,levels=3-4"}
DECIDES = {"classify": "accuracy", "multi-label": "map", "segment": "mean_dice", "detect": "map"}
OPTIONS = {"classes": ["dark", "light"], "size": SIDE, "batch": 4, "epochs": 2, "device": "cpu", "seed": 3}


def data(task):
    return list(zip(IMAGES, TRUTHS[task]))


def session(backbone_path, task="segment", **options):
    return moco.Session(backbone_path, task=task, head=HEADS[task], **{**OPTIONS, **options})


def same(one, other):
    """The same answers to the bit."""
    for a, b in zip(one.predict(IMAGES), other.predict(IMAGES)):
        assert all(x is None and y is None or _bytes(x) == _bytes(y) for x, y in zip(a, b))


def _bytes(value):
    return b"".join(map(_bytes, value)) if isinstance(value, tuple) else value.tobytes()


@pytest.mark.parametrize("task", HEADS)
def test_every_task_is_trained_measured_saved_and_asked(backbone_path, tmp_path, task):
    told = []
    with session(backbone_path, task) as training:
        assert repr(training) == f"<moco.Session to {task} 2 classes>"
        training.fit(data(task), data(task), progress=told.append)
        metrics, model = training.evaluate(data(task)), training.model()
    assert next(iter(metrics)) == DECIDES[task] and 0 <= metrics[DECIDES[task]] <= 1
    assert [p.epoch for p in told if p.event == moco.Event.EPOCH] == [1, 2]
    assert [p.step for p in told if p.event == moco.Event.STEP] == [1, 2, 3, 4]
    assert all(np.isfinite(p.loss) for p in told if p.event != moco.Event.EVALUATED)
    assert model.evaluate(data(task)) == metrics
    assert model.task == moco.Task.of(task) and model.class_names == ("dark", "light") and model.channels == 3
    assert model.card["arch"]["name"] == "resnet18" and model.head["class_names"] == ["dark", "light"]
    assert repr(model) == f"<moco.Model to {task}: dark, light>"
    model.save(tmp_path / "model.safetensors")
    with moco.Model.open(tmp_path / "model.safetensors") as opened:
        same(model, opened)
        opened.save(tmp_path / "again.safetensors")
        opened.export_onnx(tmp_path / "model.onnx")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="this moco.Model is closed"):
        opened.predict(IMAGES)
    with pytest.raises(ValueError, match="this moco.Session is closed"):
        training.model()


def test_answers_are_arrays_in_pixels_of_the_image(backbone_path, tmp_path):
    images = [np.full((50, 70, 3), 120, np.uint8), IMAGES[0]]
    models = {task: session(backbone_path, task).model() for task in HEADS}
    answers = models["segment"].predict(images)
    assert len(answers) == 2 and answers[-1].mask.shape == (SIDE, SIDE)
    mask, confidence = answers[0].mask, answers[0].confidence
    del answers
    assert mask.shape == confidence.shape == (50, 70) and mask.dtype == np.uint8 and not mask.flags.writeable
    assert mask.max() <= 1 and confidence.min() >= 0.49
    one = models["classify"].predict(images[0])[0]
    assert one.mask is None and abs(one.probabilities.sum() - 1) < 1e-5
    assert one.label == one.probabilities.argmax()
    found = models["detect"].predict(images, score=1e-6, max_detections=5)[0].detections
    assert found.boxes.shape == (5, 4) and found.labels.dtype == np.uint32 and (np.diff(found.scores) <= 0).all()
    assert (found.boxes[:, 2] <= 70).all() and (found.boxes[:, 3] <= 50).all()
    assert models["detect"].predict(images, score=1.0)[0].detections.boxes.shape == (0, 4)
    with pytest.raises(ValueError, match="not the answer of a classifier"):
        models["detect"].predict(images)[0].label
    # Files are the same pixels.
    (tmp_path / "a.png").write_bytes(png(images[0]))
    assert models["segment"].predict(tmp_path / "a.png")[0].confidence.tobytes() == confidence.tobytes()
    with pytest.raises(TypeError, match="bytes of files"):
        models["segment"].predict(png(images[0]))
    with pytest.raises(IndexError):
        models["segment"].predict(images)[2]


def test_what_was_cancelled_goes_on_to_the_bit(backbone_path, tmp_path):
    whole = session(backbone_path, augment="light")
    whole.fit(data("segment"))
    training = session(backbone_path, augment="light")
    with pytest.raises(moco.MocoError) as caught:
        training.fit(data("segment"), progress=lambda p: p.step < 3)
    assert caught.value.code == moco.Code.CANCELLED
    training.checkpoint(tmp_path / "checkpoint")
    resumed = moco.Session.resume(tmp_path / "checkpoint", checkpoint=tmp_path / "end")
    for one in (training, resumed):
        one.fit(data("segment"))
        same(one.model(), whole.model())
    same(moco.Session.resume(tmp_path / "end").model(), whole.model())


def test_batches_of_ones_own_are_learnt(backbone_path):
    training = session(backbone_path, "classify", steps=20, freeze="nothing")
    losses = [training.step(IMAGES[:4], TRUTHS["classify"][:4]) for _ in range(12)]
    assert losses[-1] < losses[0]
    with pytest.raises(moco.MocoError, match="1 to 4"):
        training.step(IMAGES, TRUTHS["classify"])
    with pytest.raises(ValueError, match="1 images, but 2 truths"):
        training.step(IMAGES[:1], [0, 1])


@pytest.mark.parametrize(
    "task, truth, error, message",
    [
        ("classify", 2, moco.MocoError, "sample 1: .*label` is 2"),
        ("classify", -1, ValueError, "sample 1: `label` is -1"),
        ("classify", "one", TypeError, "sample 1: `label` must be a whole number"),
        ("multi-label", [1, 0, 1], ValueError, "sample 1: labels are of"),
        ("multi-label", [1, 2], ValueError, "sample 1: labels hold 1 to 2"),
        ("segment", np.zeros((3, 3), np.uint8), ValueError, r"sample 1: the mask is \[3, 3\]"),
        ("segment", np.zeros((SIDE, SIDE)), TypeError, "sample 1: the mask is of float64"),
        ("segment", np.full((SIDE, SIDE), 2, np.uint8), moco.MocoError, "sample 1: .*mask` is 2"),
        ("detect", ([[1, 2, 3]], [0]), ValueError, r"boxes have the shape \[1, 3\]"),
        ("detect", ([[1, 2, 3, 4]], [0, 1]), ValueError, "labels are of int64"),
        ("detect", ([[1, 2, 1, 4]], [0]), moco.MocoError, "x0 < x1"),
        ("detect", ([[1, 2, 3, 4]], [0], [True, False]), ValueError, "`ignored`"),
    ],
)
def test_truths_that_cannot_be_are_named(backbone_path, task, truth, error, message):
    broken = data(task)
    broken[1] = (IMAGES[1], truth)
    with pytest.raises(error, match=message):
        session(backbone_path, task).fit(broken)


def test_images_without_objects_and_ignored_objects_are_welcome(backbone_path):
    training = session(backbone_path, "detect")
    training.fit([(IMAGES[0], ([], [])), (IMAGES[1], moco.Boxes([[1, 2, 9, 9]], [1], [True])), *data("detect")])
    assert set(training.evaluate(data("detect"))) >= {"map", "ap50"}


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"task": "paint"}, ValueError, "no task 'paint'"),
        ({"classes": "dark"}, TypeError, "`classes` must be names"),
        ({"classes": 0}, ValueError, "`classes` is 0"),
        ({"classes": ["a", "a"]}, moco.MocoError, "names two classes"),
        ({"head": "linear"}, moco.MocoError, "unet"),
        ({"arch": "resnet18"}, moco.MocoError, "arch"),
        ({"freeze": "ice"}, moco.MocoError, "freeze"),
        ({"learning_rate": 0}, ValueError, "`learning_rate` is 0"),
        ({"epochs": 0}, ValueError, "`epochs` is 0"),
        ({"class_weights": [1]}, ValueError, "1 class weights"),
        ({"settings": "nothing_such = 1"}, moco.MocoError, "nothing_such"),
        ({"device": "abacus"}, moco.MocoError, "abacus"),
    ],
)
def test_options_that_make_no_sense_are_named(backbone_path, options, error, message):
    with pytest.raises(error, match=message):
        moco.Session(backbone_path, **{"task": "segment", **OPTIONS, **options})


def test_what_data_and_progress_raise_arrives(backbone_path):
    class Broken:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise OSError(f"no image {index}")

    training = session(backbone_path)
    for call in (training.fit, training.evaluate, training.model().evaluate):
        with pytest.raises(OSError, match="no image"):
            call(Broken())
    with pytest.raises(ZeroDivisionError):
        training.fit(data("segment"), progress=lambda p: 1 / 0)
    training.fit(data("segment"))


def test_one_call_at_a_time_and_cancel_from_elsewhere(backbone_path):
    training = session(backbone_path, epochs=100000)
    steps = threading.Semaphore(0)
    failures = []

    def elsewhere():
        steps.acquire()
        for call in (lambda: training.model(), lambda: training.evaluate(data("segment"))):
            try:
                call()
            except moco.MocoError as error:
                failures.append(str(error))
        training.cancel()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with pytest.raises(moco.MocoError) as caught:
        training.fit(data("segment"), progress=lambda p: steps.release())
    thread.join()
    assert caught.value.code == moco.Code.CANCELLED
    assert len(failures) == 2 and all("busy" in failure for failure in failures)


def test_threads_share_a_model(backbone_path):
    model = session(backbone_path).model()
    expected = [model.predict(image)[0].confidence.tobytes() for image in IMAGES]
    wrong = []

    def ask(i):
        for k in range(4):
            which = (i + k) % len(IMAGES)
            if model.predict(IMAGES[which])[0].confidence.tobytes() != expected[which]:
                wrong.append(which)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_ctrl_c_stops_a_training(backbone_path, tmp_path):
    code = """
        import os, signal, sys, threading
        import numpy as np, moco
        data = [(np.zeros((32, 32, 3), np.uint8), 0)] * 8
        session = moco.Session(sys.argv[1], task="classify", classes=2, size=32, epochs=1000000, freeze="nothing")
        def interrupt(p):
            if p.step == 3 and p.event == moco.Event.STEP:
                os.kill(os.getpid(), signal.SIGINT)
        try:
            session.fit(data, progress=interrupt)
        except KeyboardInterrupt:
            print("stopped after", session.evaluate(data)["accuracy"] >= 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), backbone_path], stdout=subprocess.PIPE, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout == "stopped after True\n"


def test_calls_do_not_grow_the_process(backbone_path):
    training = session(backbone_path, steps=1000)
    model = training.model()

    def calls(n):
        for _ in range(n):
            training.step(IMAGES[:4], TRUTHS["segment"][:4])
            model.predict(IMAGES[:2])
            training.evaluate(data("segment")[:2])

    calls(5)
    before = allocated()
    calls(30)
    assert allocated() - before < 300_000
