"""A classifier as one ONNX file that takes decoded images of any size, checked against the network that it came from.

Needs the extra `export` (onnx, onnxruntime, onnxscript); running the file needs onnxruntime alone.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelwright.errors import ConfigError, LabelwrightError
from labelwright.exporting.served import Served
from labelwright.replacing import replacing

LARGEST_DIFFERENCE = {"probabilities": 1e-4, "trust": 1e-4, "strangeness": 0.01}
"""Between the file and the network. Strangeness is a rank: among images that all look alike, as where features are few,
it moves with the last digits of what it is made of."""
OPSET = 18  # the first whose Resize can smooth as Pillow does

# What a decoded image goes through before the network, data.cache.resize_to_square: Pillow resizes rows, rounds, then
# resizes columns. The same to within two grey levels.
_RESIZE = """Resize <antialias=1, axes=[{axis}], coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.5,
    exclude_outside=1, mode="cubic">"""
_SQUARE = """
<ir_version: 9, opset_import: ["" : {opset}]>
square (uint8[batch, height, width, 3] images) => (float[batch, 3, {size}, {size}] pixels)
<int64[1] prep_size = {{{size}}}, float prep_low = {{0}}, float prep_high = {{255}}>
{{
  prep_shape = Shape <start=1, end=3> (images)
  prep_side = ReduceMin <keepdims=1> (prep_shape)
  prep_sides = Concat <axis=0> (prep_side, prep_side)
  prep_square = CenterCropPad <axes=[1, 2]> (images, prep_sides)
  prep_planes = Transpose <perm=[0, 3, 1, 2]> (prep_square)
  prep_levels = Cast <to=1> (prep_planes)
  prep_rows = {rows} (prep_levels, , , prep_size)
  prep_rows_rounded = Round (prep_rows)
  prep_rows_levels = Clip (prep_rows_rounded, prep_low, prep_high)
  prep_columns = {columns} (prep_rows_levels, , , prep_size)
  prep_columns_rounded = Round (prep_columns)
  pixels = Clip (prep_columns_rounded, prep_low, prep_high)
}}
"""


def write_onnx(served: Served, path: Path, *, size_px: int, n_features: int, metadata: Mapping[str, str]) -> float:
    """Write an ONNX file and run it beside the module that it was made of.

    Args:
      served: the classifier, on the CPU, in evaluation mode.
      path: to write; appears whole, and not at all if the check fails.
      size_px: side of the square that the network sees; 0: it takes embeddings.
      n_features: D of embeddings.
      metadata: texts that travel in the file.

    Returns: the largest difference of a probability or a trust between file and module, over a batch of one and one of
      five inputs: of images noise above and one colour below, of embeddings noise.

    The input is ``images`` [batch, height, width, 3] uint8 RGB, upright, of any one size, or ``embeddings`` [batch, D]
    float32; the outputs are `Served.outputs`.

    Raises: ConfigError without the extra; LabelwrightError if the difference exceeds LARGEST_DIFFERENCE.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"an ONNX file needs {', '.join(missing)}, not installed here", fix="pip install 'labelwright[export]'"
        )
    made = _converted(served, torch.zeros(2, 3, size_px, size_px) if size_px else torch.zeros(2, n_features))
    if size_px:
        _put_before(made, size_px)
    for key, value in metadata.items():
        entry = made.metadata_props.add()
        entry.key, entry.value = key, value
    content = made.SerializeToString()
    worst = _differences(content, served, [_example(n, size_px, n_features) for n in (1, 5)])
    if wrong := {name: off for name, off in worst.items() if not off <= LARGEST_DIFFERENCE[name]}:
        words = ", ".join(f"{name} by up to {off:.2g}" for name, off in wrong.items())
        raise LabelwrightError(
            f"the ONNX file gives other values than the model, {words}, and was not kept",
            fix="export --format torchscript, or report the network: it holds something that ONNX cannot express",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return max(worst["probabilities"], worst["trust"])


def _converted(served: Served, example: Tensor) -> Any:
    """The network as an ONNX model with the input ``pixels`` or ``embeddings``."""
    name = "pixels" if example.ndim == 4 else "embeddings"
    logger = logging.getLogger("torch.onnx")
    before, logger.disabled = logger.disabled, True
    registrations = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registrations.level
    registrations.setLevel(logging.ERROR)  # it warns that torchvision is not there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                served,
                (example,),
                input_names=[name],
                output_names=list(served.outputs),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.disabled = before
        registrations.setLevel(level)
    return program.model_proto


def _put_before(made: Any, size_px: int) -> None:
    """Let a model whose input is ``pixels`` take ``images`` of any size."""
    from onnx import parser

    rows, columns = (_RESIZE.format(axis=axis) for axis in (3, 2))
    square = parser.parse_model(_SQUARE.format(opset=OPSET, size=size_px, rows=rows, columns=columns)).graph
    graph = made.graph
    nodes = [*square.node, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.initializer.extend(square.initializer)
    graph.input.extend(square.input)


def _example(n: int, size_px: int, n_features: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    if size_px:
        images = torch.randint(0, 256, (n, size_px, size_px, 3), generator=generator, dtype=torch.uint8)
        images[:, size_px // 2 :] = images[:, :1, :1]  # skies and margins have no noise
        return images
    return torch.randn(n, n_features, generator=generator)


def _differences(content: bytes, served: Served, examples: Sequence[Tensor]) -> dict[str, float]:
    """The largest difference of each output that is a number; NaN where a value is."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = {name: np.float32(0) for name in served.outputs if name != "label"}
    for example in examples:
        found = session.run(list(worst), {session.get_inputs()[0].name: example.numpy()})
        with torch.inference_mode():
            own = served(example.permute(0, 3, 1, 2) if example.ndim == 4 else example)
        for name, each in zip(worst, found, strict=True):
            off = np.abs(each - own[served.outputs.index(name)].numpy()).max()
            worst[name] = np.maximum(worst[name], off)  # NaN stays
    return {name: float(off) for name, off in worst.items()}
