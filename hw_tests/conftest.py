"""Tests here need hardware that CI does not have. Each skips itself with the reason; ``pytest hw_tests`` runs them."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def cuda_runtime() -> None:
    """Skip unless this onnxruntime can run on a GPU of this machine."""
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime-gpu")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA execution provider (install onnxruntime-gpu)")


@pytest.fixture(scope="session")
def genai_cuda() -> None:
    """Skip unless this onnxruntime-genai can run on a GPU of this machine."""
    genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai-cuda")
    if not genai.is_cuda_available():
        pytest.skip("this onnxruntime-genai has no CUDA (install onnxruntime-genai-cuda in place of it)")
