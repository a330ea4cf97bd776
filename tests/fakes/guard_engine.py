"""The real ONNX Runtime, misbehaving on order: the file ``orders`` beside the model says how, while it runs.

No file, or an empty one, is good behaviour. Run as a program it is the isolated worker with this engine in
its table.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from edgekiln import engines
from edgekiln.engines import onnxruntime

NAME = "guard"
ORDERS = "orders"
WORKER = (sys.executable, str(Path(__file__).resolve()))


class _Runner:
    def __init__(self, runner, folder):
        self._runner, self._orders = runner, folder / ORDERS

    def __call__(self, inputs):
        order = self._orders.read_text() if self._orders.exists() else ""
        outputs = self._runner(inputs)
        if order == "hang":
            while self._orders.exists() and self._orders.read_text() == "hang":
                time.sleep(0.01)
        elif order.startswith("slow"):
            time.sleep(float(order.split()[1]))
        elif order == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif order == "exit":
            os._exit(7)
        elif order == "hungry":
            return {n: np.ones(1 << 50) for n in outputs}
        elif order == "bad_alloc":
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc")
        elif order == "device lost":
            raise RuntimeError("CUDA failure 719: unspecified launch failure ; GPU=0")
        elif order == "nan":
            return {n: np.full_like(v, np.nan) for n, v in outputs.items()}
        elif order == "shape":
            return {n: v[..., :-1] for n, v in outputs.items()}
        elif order == "chatty":
            os.write(1, b"a line from C on stdout\n" * 1000)
            print("and from Python", flush=True)
        elif order == "raise":
            raise ValueError("something nobody expected")
        return outputs

    def close(self):
        self._runner.close()


def open(artifact, folder, threads):
    orders = folder / ORDERS
    while orders.exists() and orders.read_text() == "hang at opening":
        time.sleep(0.01)
    return _Runner(onnxruntime.open(artifact, folder, threads), folder)


engines.ENGINES[NAME] = "fakes.guard_engine"

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from edgekiln.runtime.isolated_worker import main

    main()
