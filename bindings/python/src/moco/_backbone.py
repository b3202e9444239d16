"""Backbones: opened from a file, turned on images."""

import ctypes
import json
import os
from typing import Any, Dict, Iterable, Optional, Tuple, Union

from . import _abi, _features, _images
from ._library import Handle, Owner, lib, read, text, whole


class Backbone(Owner):
    """What MoCo trains, and what turns an image into features.

    `path`: a backbone.safetensors file, a folder that holds one, or "hf://owner/name[@revision][/file]" in a Hub of models.
    Files of others (MoCo's, torchvision's, timm's, Detectron2's) are converted in memory; what is assumed of them is told
    to `set_log()`. `taps`: the features to extract, by default
    "pooled". `threads`: images worked on at the same time; one a core by default. `batch`: images a thread takes at once,
    chosen by default; it does not change the features. `ort_library`: ONNX Runtime's library instead of the one in the
    package; one serves the whole process. `calibration`: the file that `moco-infer calibrate` wrote for this backbone, with
    which the network runs in int8; float32 by default. `channels`: channels of the images, for which the first convolution
    is folded or spread; as the card says by default.

    Raises `MocoError`, which names every tensor that is wrong and every place that was tried.

    Any number of threads may call one backbone.
    """

    def __init__(
        self,
        path: Union[str, "os.PathLike[str]"],
        *,
        taps: Union[str, Iterable[str], None] = None,
        threads: Optional[int] = None,
        batch: Optional[int] = None,
        ort_library: Union[str, "os.PathLike[str]", None] = None,
        calibration: Union[str, "os.PathLike[str]", None] = None,
        channels: Optional[int] = None,
    ) -> None:
        names = [taps] if isinstance(taps, str) else list(taps) if taps is not None else ["pooled"]
        if not names:
            raise ValueError("`taps` is empty: name at least one, or leave it out for `pooled`")
        options = _abi.moco_backbone_options(struct_size=ctypes.sizeof(_abi.moco_backbone_options))
        options.taps = text(",".join(names), "taps")
        options.ort_library = None if ort_library is None else text(ort_library, "ort_library")
        options.calibration = None if calibration is None else text(calibration, "calibration")
        options.channels = 0 if channels is None else whole(channels, "channels", least=1)
        options.threads = 0 if threads is None else whole(threads, "threads", least=1)
        options.batch = 0 if batch is None else whole(batch, "batch", least=1)
        if isinstance(path, os.PathLike) and os.fspath(path).startswith("hf:/"):
            raise ValueError(f"`path` is {os.fspath(path)!r}: pathlib swallows a slash of hf://, so give it as a str")
        out = ctypes.POINTER(_abi.moco_backbone)()
        lib.moco_backbone_open(text(path, "path"), options, out)
        super().__init__(Handle(out, lib.moco_backbone_free))

    @property
    def arch(self) -> str:
        """Name of the network, e.g. "resnet50"."""
        return read(lib.moco_backbone_arch(self._open_handle()))

    @property
    def method(self) -> str:
        """How it was trained, e.g. "moco-v2"."""
        return read(lib.moco_backbone_method(self._open_handle()))

    @property
    def card(self) -> Dict[str, Any]:
        """The whole card: network, preprocessing, training data, recipe, licence."""
        card: Dict[str, Any] = json.loads(read(lib.moco_backbone_card(self._open_handle())))
        return card

    @property
    def taps(self) -> Tuple[str, ...]:
        """All taps that the backbone has, not only those it was opened with."""
        handle = self._open_handle()
        return tuple(read(lib.moco_backbone_tap_name(handle, tap)) for tap in range(lib.moco_backbone_taps(handle)))

    def dim(self, tap: str = "pooled") -> int:
        """Channels of a tap: the length of a vector such as "pooled", the depth of a map such as "c5"."""
        out = ctypes.c_size_t()
        lib.moco_backbone_tap_dim(self._open_handle(), text(tap, "tap"), out)
        return out.value

    def extract(
        self,
        images: _images.Images,
        *,
        window: Optional[_images.Window] = None,
        bits: Optional[int] = None,
        inverted: bool = False,
    ) -> _features.Features:
        """Features of one image or many.

        `images`: a path, the bytes of a file, or an array; a sequence of one of these kinds; or a batch in one array
        [images, height, width, channels]. Arrays are [height, width, channels] in RGB order, or [height, width] for grey;
        those in a sequence may differ in size. uint8 is taken as it is; uint16, int16 and float32 need `window`, the
        values that become 0 and 255 (the first above the second inverts), unless the backbone's card maps deeper values
        itself; if it maps all that 12 bits hold, say `bits=12`. `inverted`: small values are bright, as in MONOCHROME1.

        Arrays are read where they are if their rows have no gaps inside, so also a crop of a larger image; others, such
        as `image[..., ::-1]`, are copied. Nobody may write to them meanwhile.

        Raises `MocoError` that names the image; there are no features then.
        """
        handle = self._open_handle()
        given = _images.images(images, _images.Values(window, bits, inverted))
        functions = {
            "paths": lib.moco_backbone_extract_paths,
            "encoded": lib.moco_backbone_extract_encoded,
            "pixels": lib.moco_backbone_extract_pixels,
        }
        out = _features.new()
        functions[given.kind](handle, given.array, given.n, out)
        return _features.take(out)

    def __enter__(self) -> "Backbone":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<moco.Backbone, closed>"
        return f"<moco.Backbone {self.arch} ({self.method}), taps {', '.join(self.taps)}>"
