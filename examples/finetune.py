"""python finetune.py backbone.safetensors TRAIN TEST head.safetensors

Fits a linear head on frozen features. TRAIN and TEST hold one folder of pictures a class.
"""

import sys
from pathlib import Path

import moco
import numpy as np


def find(folder: Path, classes: list) -> tuple:
    pictures = [sorted((folder / name).iterdir()) for name in classes]
    labels = [label for label, found in enumerate(pictures) for _ in found]
    return [path for found in pictures for path in found], np.array(labels)


def told(progress: moco.Progress) -> None:
    if progress.epoch % 25 == 0:
        phase = "learning rates" if progress.sweeping else "head"
        print(f"{phase}: epoch {progress.epoch} of {progress.epochs}, loss {progress.loss:.3f}", file=sys.stderr)


def main() -> int:
    if len(sys.argv) != 5:
        print("usage: finetune.py backbone.safetensors TRAIN TEST head.safetensors", file=sys.stderr)
        return 2
    backbone = moco.Backbone(sys.argv[1])
    train, test = Path(sys.argv[2]), Path(sys.argv[3])
    classes = sorted(entry.name for entry in train.iterdir())
    (train_paths, train_labels), (test_paths, test_labels) = find(train, classes), find(test, classes)
    features, held_out = backbone.extract(train_paths), backbone.extract(test_paths)

    moco.Head.fit(features, train_labels, class_names=classes, progress=told).save(sys.argv[4])

    head = moco.Head.open(sys.argv[4])
    predicted = head.predict(held_out).labels
    fitted = head.predict(features).labels
    print(
        f"{backbone.arch}: {len(classes)} classes, {len(train_paths)} + {len(test_paths)} pictures, "
        f"features of {head.dim} values"
    )
    print(f"{test_paths[0]}: {head.class_names[predicted[0]]}")
    print(
        f"accuracy {100 * np.mean(predicted == test_labels):.1f} % on {len(test_paths)} pictures that were held out "
        f"({100 * np.mean(fitted == train_labels):.1f} % on those it was fitted on)"
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (moco.MocoError, OSError) as error:
        sys.exit(f"error: {error}")
