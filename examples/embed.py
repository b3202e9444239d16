"""python embed.py backbone.safetensors PICTURE...

Prints how similar the features of the first picture are to those of each other one.
"""

import sys

import moco
import numpy as np


def main() -> int:
    if len(sys.argv) < 3:
        print("usage: embed.py backbone.safetensors PICTURE...", file=sys.stderr)
        return 2
    pictures = sys.argv[2:]
    with moco.Backbone(sys.argv[1]) as backbone:
        rows = np.asarray(backbone.extract(pictures), np.float64)
    for row, picture in zip(rows, pictures):
        cosine = rows[0] @ row / (np.sqrt((rows[0] @ rows[0]) * (row @ row)) + 1e-30)
        print(f"{cosine:.4f}  {picture}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (moco.MocoError, OSError) as error:
        sys.exit(f"error: {error}")
