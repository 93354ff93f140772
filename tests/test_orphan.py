"""A process dies with its parent, also one that is only just starting, or stopped."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from physics_helpers import assert_end, wait_until

PARENT = """
import subprocess, sys
arguments = ["-m", "streamer", "stage", "framer", "--supervised"]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
child = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.PIPE, start_new_session=True, **quiet)
print(child.pid, flush=True)
input()
"""


@pytest.mark.parametrize("stopped", [True, False])
def test_a_process_whose_parent_is_killed_while_it_starts_is_gone(stopped: bool) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_until(lambda: any("pydantic_core" in found.path for found in child.memory_maps()), "imports")
    if stopped:
        child.suspend()
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    assert_end([child])
