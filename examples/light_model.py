"""Write one of the light models of the onnx package, with random weights: ``python -m examples.light_model resnet50 FILE``."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx

from trtcli.zoo import LIGHT_MODELS, light_model


def main() -> int:
    if len(sys.argv) != 3:
        print(f"usage: python -m examples.light_model {{{','.join(LIGHT_MODELS)}}} FILE", file=sys.stderr)
        return 1
    name, path = sys.argv[1], Path(sys.argv[2])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(light_model(name), path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
