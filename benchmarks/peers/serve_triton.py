"""Serves ONNX files with Triton through PyTriton, as its documentation shows. Runs in an environment of its own.

The wheel carries Triton's server and its Python backend: Triton batches (dynamic batching, PyTriton's default) and
talks HTTP and gRPC, and a Python function runs onnxruntime. Triton's own onnxruntime backend is not in the wheel.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def bind(triton: Triton, name: str, path: str, max_batch: int) -> None:
    """Bind one model file: every input and output is FP32, with the file's own names and shapes."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    @batch
    def infer(**inputs: np.ndarray) -> list[np.ndarray]:
        return session.run(None, inputs)

    triton.bind(
        model_name=name,
        infer_func=infer,
        inputs=[Tensor(name=each.name, dtype=np.float32, shape=tuple(each.shape[1:])) for each in session.get_inputs()],
        outputs=[Tensor(name=each.name, dtype=np.float32, shape=(-1,)) for each in session.get_outputs()],
        config=ModelConfig(max_batch_size=max_batch),
    )


def main() -> None:
    job = json.loads(sys.argv[1])
    # the Python backend links libpython, and has to find this interpreter's, not the system's of the same minor version
    searched = (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, searched))
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=job["http_port"],
        grpc_address="127.0.0.1",
        grpc_port=job["grpc_port"],
        metrics_port=job["metrics_port"],
    )
    with Triton(config=config, workspace=f"{job['directory']}/workspace") as triton:
        for model in job["models"]:
            bind(triton, model["name"], model["path"], model["max_batch"])
        triton.serve()


if __name__ == "__main__":
    main()
