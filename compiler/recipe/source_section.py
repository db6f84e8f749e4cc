"""The recipe's tables [edge.source] and [cloud.source]: how a model that is no ONNX file becomes one.

Decides names and ranges only. Nothing is required: what a model is can mostly be seen (``compiler.sources.detection``).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.errors import ConfigError, InvalidInput
from penstock.wire.tensors import numpy_dtype

Framework = Literal["auto", "onnx", "huggingface", "torch", "sklearn", "llm"]
HuggingFaceToolchain = Literal["optimum", "transformers5"]

MIN_OPSET, MAX_OPSET = 13, 64  # QuantizeLinear has an axis since 13; the exporter knows what it can write at most

MAX_NEW_TOKENS, MAX_PROMPT = 4096, 64


class InputSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input of a model that is exported, for the examples that it is exported and compared with.

    Attributes:
        shape: with the batch in front; -1 is a free dimension, and dimension 0 is always free.
        datatype: as in the Open Inference Protocol; "BYTES" is text, which estimators may take.
        low: examples are drawn from here on. By default floats are standard normal and integers 0 or 1, which is right
            for masks, and inside any vocabulary.
        high: examples are drawn up to here (integers: below it).
    """

    shape: tuple[int, ...]
    datatype: str = "FP32"
    low: float | None = None
    high: float | None = None


class SourceSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is read and exported.

    Attributes:
        framework: what the model is, where that cannot be seen: a factory returns a torch module ("torch", what "auto"
            takes it for) or a fitted estimator ("sklearn").
        task: of a Hugging Face model, in Optimum's words ("text-classification"); by default what its class is for.
        toolchain: which exporter takes Hugging Face directories: Optimum's, or that of transformers 5.
        opset: version of ONNX's operators to export; 0 is the exporter's own choice.
        inputs: where the factory gives no examples, by name: of a torch module in the order of ``forward``, of a
            scikit-learn estimator in the order of its columns, where some are text.
        dynamic: free dimensions besides the batch, by input, where the factory gives the examples.
        outputs: names for a torch module's outputs; by default the keys of a dict, or output, output_0, ...
        max_new_tokens: length of the answers of an encoder-decoder, in tokens; 0 takes what its generation_config.json
            says, else 64.
        prompt: tokens that an encoder-decoder's answer begins with, behind the start token, and that are not part of
            it: language and task of a Whisper; by default what its generation_config.json says.
        files: what the factory reads (weights): they count when it is decided whether an export can be reused.
        tolerance: largest difference between the original's answers and the export's, as a share of the largest answer
            (or of 1, if that is larger).
        allow_pickle: load pickled files, which run whatever code their author put in.
    """

    framework: Framework = "auto"
    task: str = ""
    toolchain: HuggingFaceToolchain = "optimum"
    opset: int = 0
    inputs: dict[str, InputSection] = {}
    dynamic: dict[str, tuple[int, ...]] = {}
    outputs: tuple[str, ...] = ()
    max_new_tokens: int = 0
    prompt: tuple[int, ...] = ()
    files: tuple[str, ...] = ()
    tolerance: float = 1e-4
    allow_pickle: bool = False


def check(section: SourceSection, *, field: str) -> None:
    """Check everything that can be known of the settings without the model.

    Args:
        field: the table's name in the recipe, for messages.

    Raises:
        ConfigError: a value out of range.
    """
    if section.opset and not MIN_OPSET <= section.opset <= MAX_OPSET:
        raise ConfigError(f"{field}.opset: {section.opset} given, expected {MIN_OPSET} to {MAX_OPSET}, or 0 for any")
    if not 0 <= section.max_new_tokens <= MAX_NEW_TOKENS:
        raise ConfigError(f"{field}.max_new_tokens: {section.max_new_tokens} given, expected 0 to {MAX_NEW_TOKENS}")
    if len(section.prompt) > MAX_PROMPT or any(token < 0 for token in section.prompt):
        raise ConfigError(
            f"{field}.prompt: {list(section.prompt)[:8]} given, expected at most {MAX_PROMPT} tokens by their numbers"
        )
    if not 0 < section.tolerance <= 1:
        raise ConfigError(f"{field}.tolerance: {section.tolerance:g} given, expected above 0 and at most 1")
    for name, given in section.inputs.items():
        where = f"{field}.inputs.{name}"
        if not given.shape or given.shape[0] != -1:
            raise ConfigError(
                f"{where}.shape: {list(given.shape)} given; the first dimension is the batch and must be -1"
            )
        if any(dim != -1 and dim < 1 for dim in given.shape):
            raise ConfigError(
                f"{where}.shape: {list(given.shape)} given; dimensions are 1 or more, or -1 for free ones"
            )
        if given.datatype == "BYTES" and (given.low, given.high) != (None, None):
            raise ConfigError(f"{where}: low and high are for numbers, and BYTES are text")
        if given.low is not None and given.high is not None and given.low >= given.high:
            raise ConfigError(f"{where}: low {given.low:g} is not below high {given.high:g}")
        _check_datatype(given.datatype, where)
    for name, axes in section.dynamic.items():
        if any(axis < 1 for axis in axes):
            raise ConfigError(f"{field}.dynamic.{name}: {list(axes)} given; count from 1, dimension 0 is always free")


def _check_datatype(datatype: str, where: str) -> None:
    try:
        numpy_dtype(datatype, field=f"{where}.datatype")
    except InvalidInput as error:
        raise ConfigError(error.message) from error
