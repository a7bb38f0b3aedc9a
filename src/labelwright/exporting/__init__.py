"""Models and labels in the formats of other tools."""

from typing import Literal

Format = Literal[
    "onnx",
    "torchscript",
    "safetensors",
    "hub",
    "csv",
    "label-studio",
    "fiftyone",
    "coco",
    "yolo-folder",
    "imagefolder",
    "datasets",
]
"""What `export` writes: the model in the first four, the labels in the others."""
