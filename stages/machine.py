"""What this machine has for inference."""

import os
from pathlib import Path

from streamer.errors import UsageError


def n_gpus() -> int:
    """NVIDIA devices that are ours. On a shared machine all can be seen, and `CUDA_VISIBLE_DEVICES` names ours, up to
    the first that is none."""
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    ours = os.environ.get("CUDA_VISIBLE_DEVICES")
    if ours is None or not there:
        return there
    named = [name.strip() for name in ours.split(",")]
    good = [name != "" and not name.startswith("-") for name in named]
    return good.index(False) if False in good else len(good)


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cores(text: str) -> set[int]:
    """Those that a setting such as '2-5,8' names.

    Raises
    ------
    UsageError
        This process may not use one of them.
    """
    named: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        named |= set(range(int(first), int(last or first) + 1))
    ours = os.sched_getaffinity(0)
    if not named <= ours:
        raise UsageError(
            f"tagger.cpus = '{text}': there is no core {min(named - ours)} here; there are "
            f"{', '.join(map(str, sorted(ours)))}"
        )
    return named
