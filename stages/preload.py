"""What the stages load only when they begin: loaded once, before their processes are forked (`streamer.forkserver`)."""

import encodings.idna  # noqa: F401

import numpy.ma  # noqa: F401
import onnx  # noqa: F401

from stages.detector.ecal import eb_pixel

eb_pixel(0)  # with the first kernel, Numba loads the better part of itself
