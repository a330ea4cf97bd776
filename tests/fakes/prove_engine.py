"""A whole engine whose behaviour its artifact's options choose; each good call is logged."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from edgekiln.errors import NotRunnableHere


class _Runner:
    def __init__(self, artifact, folder):
        self.id, self.options, self.folder, self.calls = artifact.id, artifact.options, folder, 0

    def __call__(self, inputs):
        self.calls += 1
        behaviour = self.options["behaviour"]
        if self.calls > self.options.get("good_calls", 0):
            misbehave(behaviour)
        started = time.monotonic_ns()
        slow = "slow_file" in self.options and Path(self.options["slow_file"]).exists()
        time.sleep(self.options.get("slow_ms" if slow else "ms", 1.0) / 1e3)
        with (self.folder / "log").open("a") as log:
            log.write(f"{self.id} {started} {time.monotonic_ns()}\n")
        return {"y": inputs["x"]}

    def close(self):
        pass


def misbehave(behaviour):
    if behaviour == "crash":
        os.write(2, b"assertion failed in kernel 17\n")
        os.kill(os.getpid(), signal.SIGSEGV)
    elif behaviour == "exit":
        os._exit(7)
    elif behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "hang":
        time.sleep(1e6)
    elif behaviour == "hungry":
        np.ones(1 << 50)
    elif behaviour == "raise":
        raise ValueError("Got invalid dimensions for input: x")
    elif behaviour == "garbage":
        for handle in range(3, 16):
            try:
                os.write(handle, b"hello from a library\n")
            except OSError:
                continue
    elif behaviour == "chatty":
        print("loading weights ...", flush=True)
        os.write(1, b"a line from C on stdout\n")


def open(artifact, folder, threads):
    (folder / f"{artifact.id}.pid").write_text(str(os.getpid()))
    (folder / f"{artifact.id}.environment").write_text(f"{os.environ['OMP_NUM_THREADS']} {threads}")
    if artifact.options["behaviour"] == "refuse":
        raise NotRunnableHere("opening", artifact.entry, "no such instruction here", "Use another machine")
    return _Runner(artifact, folder)
