"""Networks as ONNX files, held against torch."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stages.training.networks import PointScorer, Scorer
from stages.training.scoring import scores_of, session
from streamer.errors import StreamerError

OPSET = 18
INPUT, OUTPUT = "crops", "score"
TOLERANCE = 1e-3
Points = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def bare(model: Any) -> Any:
    """An ONNX model without what the exporter says of the code and the folders that it came from."""
    graphs = [model.graph, *model.functions]
    for part in (model, *graphs, *(node for graph in graphs for node in graph.node)):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    return model


def export_onnx(network: Any, sample: npt.NDArray[np.float32]) -> bytes:
    """A network as an ONNX file: "crops" float32[batch, n_channels, size, size] -> "score" float32[batch, 1].

    It is run once by ONNX Runtime and held against torch.

    Parameters
    ----------
    network : torch.nn.Module
        On the CPU.
    sample : float32[n, n_channels, size, size]
        Crops to compare on, at least two.

    Raises
    ------
    StreamerError
        The scores of the two differ by more than 1e-3.
    """
    scorer = Scorer(network).eval()
    with _quiet():
        program = torch.onnx.export(
            scorer,
            (torch.from_numpy(sample[:2].copy()),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    onnx: bytes = bare(program.model_proto).SerializeToString()
    with torch.no_grad():
        wanted = scorer(torch.from_numpy(sample))[:, 0].numpy()
    difference = np.abs(scores_of(session(onnx), sample) - wanted).max()
    if not difference < TOLERANCE:
        raise StreamerError(f"the exported network is another: ONNX Runtime and torch differ by {difference:.2g}")
    return onnx


def export_points(network: Any, points: Points) -> bytes:
    """A network of points as an ONNX file for `input = "points"`: "points" and "mask" -> "score" float32[batch, 1].

    Parameters
    ----------
    network : stages.training.points.PointNetwork
        On the CPU.
    points : float32[n, n_points, 2 + n_channels], float32[n, n_points]
        To compare on, at least two.

    Raises
    ------
    StreamerError
        ONNX Runtime and torch differ by more than 1e-3.
    """
    scorer = PointScorer(network).eval()
    cloud, mask = (torch.from_numpy(part.copy()) for part in points)
    with _quiet():
        program = torch.onnx.export(
            scorer,
            (cloud[:2], mask[:2]),
            input_names=["points", "mask"],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},) * 2,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    onnx: bytes = bare(program.model_proto).SerializeToString()
    with torch.no_grad():
        wanted = scorer(cloud, mask)[:, 0].numpy()
    made = session(onnx).run([OUTPUT], {"points": points[0], "mask": points[1]})[0][:, 0]
    difference = np.abs(made - wanted).max()
    if not difference < TOLERANCE:
        raise StreamerError(f"the exported network is another: ONNX Runtime and torch differ by {difference:.2g}")
    return onnx


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its inner steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
