"""Makes the wheel one of a platform, for every Python 3, as the library in it needs no version of Python."""

import os
import sysconfig

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PlatformWheel(BuildHookInterface):
    def initialize(self, version, build_data):
        if not os.path.isdir(os.path.join(self.root, "src", "moco", "lib")):
            raise RuntimeError("src/moco/lib with libmoco and ONNX Runtime is missing: build with `cargo xtask wheel`")
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
