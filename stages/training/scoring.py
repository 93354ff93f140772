"""What an ONNX network makes of labelled crops, and what a crop costs it; without torch."""

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from stages.training.dataset import Crops


def session(onnx: bytes) -> Any:
    """ONNX Runtime with a network, on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def scores_of(session: Any, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scores of a dense batch: float32[n]."""
    made: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return made.reshape(len(batch))


def score_onnx(onnx: bytes, crops: Crops, batch_size: int = 64) -> npt.NDArray[np.float32]:
    """Scores of an exported network by ONNX Runtime, on one thread: float32[n]."""
    network = session(onnx)
    out = np.empty(len(crops), np.float32)
    batch = np.empty((batch_size, *crops.shape), np.float32)
    for first in range(0, len(crops), batch_size):
        chosen = np.arange(first, min(first + batch_size, len(crops)))
        out[chosen] = scores_of(network, crops.dense(chosen, out=batch))
    return out


def milliseconds(onnx: bytes, crops: Crops, batch_size: int, seconds: float = 0.5) -> float:
    """What a crop takes in batches of this size: the median over half a second of runs, on one thread."""
    network = session(onnx)
    batch = crops.dense(np.arange(batch_size) % len(crops))
    scores_of(network, batch)
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        begin = time.perf_counter()
        scores_of(network, batch)
        times.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(times)) / batch_size
