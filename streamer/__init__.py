"""Streamer's core: events, blocks, hops, processes, time and metrics. It knows no physics."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("e2e-streamer")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
