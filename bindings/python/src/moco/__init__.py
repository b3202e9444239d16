"""MoCo backbones, heads and fine-tuning, through libmoco.

>>> import moco
>>> with moco.Backbone("run/backbone.safetensors") as backbone:
...     train = backbone.extract(["a.jpg", "b.jpg"])
...     head = moco.Head.fit(train, labels=[0, 1])
...     answer = head.predict(backbone.extract(["c.jpg"]))

>>> session = moco.Session("run/backbone.safetensors", task="segment", classes=["background", "nucleus"])
>>> session.fit([(image, mask), ...], validation=[(image, mask), ...])
>>> session.model().predict("d.png")[0].mask

Images are paths, the bytes of files, or numpy arrays. Features are read-only numpy arrays over the library's memory.
Calls release the GIL, and any number of threads may use one backbone or head at the same time. What libmoco reports is a
`MocoError`; an argument of the wrong type or shape is a `TypeError` or `ValueError` before libmoco sees it.
"""

from ._abi import VERSION as __version__
from ._backbone import Backbone
from ._features import Features
from ._fit import Progress
from ._head import Head, Prediction
from ._library import Code, MocoError, library_path, library_version
from ._log import set_log
from ._model import Answer, Answers, Detections, Model
from ._samples import Boxes, Task
from ._session import Event, Session, SessionProgress

__all__ = [
    "Answer",
    "Answers",
    "Backbone",
    "Boxes",
    "Code",
    "Detections",
    "Event",
    "Features",
    "Head",
    "MocoError",
    "Model",
    "Prediction",
    "Progress",
    "Session",
    "SessionProgress",
    "Task",
    "__version__",
    "library_path",
    "library_version",
    "set_log",
]
