"""Serves ONNX files with MLServer, by a custom runtime as its documentation shows. Runs in an environment of its own.

Settings are MLServer's defaults (one worker process), with adaptive batching switched on for each model.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

MAX_BATCH_TIME_S = 0.001
"""How long a batch waits for company: it delays a single caller as well, so it is the shortest that still batches."""


class OnnxRuntime(MLModel):
    """Runs the ONNX file that ``parameters.uri`` names."""

    async def load(self) -> bool:
        self._session = ort.InferenceSession(self.settings.parameters.uri, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        names = [each.name for each in self._session.get_outputs()]
        answers = self._session.run(names, inputs)
        outputs = [NumpyCodec.encode_output(name, answer) for name, answer in zip(names, answers, strict=True)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


def main() -> None:
    job = json.loads(sys.argv[1])
    repository = Path(job["directory"])
    settings = {"host": "127.0.0.1", **{name: job[name] for name in ("http_port", "grpc_port", "metrics_port")}}
    (repository / "settings.json").write_text(json.dumps(settings))
    for model in job["models"]:
        folder = repository / model["name"]
        folder.mkdir()
        document = {
            "name": model["name"],
            "implementation": f"{Path(__file__).stem}.OnnxRuntime",
            "max_batch_size": model["max_batch"],
            "max_batch_time": MAX_BATCH_TIME_S,
            "parameters": {"uri": model["path"]},
        }
        (folder / "model-settings.json").write_text(json.dumps(document))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    program = [str(Path(sys.executable).with_name("mlserver")), "start", str(repository)]
    os.chdir(repository)  # where it keeps its metrics' files
    os.execve(program[0], program, environment)


if __name__ == "__main__":
    main()
