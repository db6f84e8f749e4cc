"""Hugging Face directories: which task a class is for, which exporter takes it, and what travels along.

A sentence-transformers directory keeps its pooling: it becomes part of the graph, so that the device gives the
sentence's embedding and not one for each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from compiler.progress import Progress
from compiler.recipe.source_section import SourceSection
from compiler.sources import companions, detection, sentences
from compiler.sources.detection import Source
from compiler.sources.exported import Exported
from penstock.errors import ConfigError

FEATURES = "feature-extraction"

_TASKS: tuple[tuple[str, str], ...] = (
    ("ForSequenceClassification", "text-classification"),
    ("ForImageClassification", "image-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMultipleChoice", "multiple-choice"),
    ("ForMaskedLM", "fill-mask"),
    ("ForSemanticSegmentation", "semantic-segmentation"),
    ("ForObjectDetection", "object-detection"),
    ("ForDepthEstimation", "depth-estimation"),
    ("ForAudioClassification", "audio-classification"),
    ("ForCTC", "automatic-speech-recognition"),
    ("ForAudioFrameClassification", "audio-frame-classification"),
    ("Model", FEATURES),
)
_ENCODER_DECODERS: tuple[tuple[str, str], ...] = (
    ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
    ("Speech2TextForConditionalGeneration", "automatic-speech-recognition"),
    ("SpeechEncoderDecoderModel", "automatic-speech-recognition"),
    ("VisionEncoderDecoderModel", "image-to-text"),
    ("Pix2StructForConditionalGeneration", "image-to-text"),
    ("ForConditionalGeneration", "text2text-generation"),
    ("MTModel", "text2text-generation"),
    ("EncoderDecoderModel", "text2text-generation"),
)
_AUDIO = frozenset({
    "wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "hubert", "wavlm", "unispeech", "unispeech-sat", "sew", "sew-d",
    "data2vec-audio", "audio-spectrogram-transformer",
})  # fmt: skip


def task_of(config: Mapping[str, Any]) -> str:
    """Return the task that the class of a configuration is for, in Optimum's words.

    Raises:
        ConfigError: it cannot be seen; ``source.task`` has to say it.
    """
    name = detection.architecture(config)
    if config.get("model_type") in _AUDIO and name.endswith("ForSequenceClassification"):
        return "audio-classification"
    for suffix, task in (*(_ENCODER_DECODERS if config.get("is_encoder_decoder") else ()), *_TASKS):
        if name.endswith(suffix):
            return task
    raise ConfigError(
        f"source.task: the directory's config.json names {f'class {name}' if name else 'no class'}, which tells no "
        "task; set it in Optimum's words, for example text-classification"
    )


def is_generating(config: Mapping[str, Any]) -> bool:
    """Say whether a configuration is of an encoder-decoder whose class generates."""
    name = detection.architecture(config)
    return bool(config.get("is_encoder_decoder")) and any(name.endswith(suffix) for suffix, _ in _ENCODER_DECODERS)


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in order; empty where the configuration has only the made-up LABEL_0, LABEL_1,
    ...
    """
    named = config.get("id2label")
    if not isinstance(named, dict) or not all(str(key).isdigit() for key in named):
        return ()
    labels = tuple(str(named[key]) for key in sorted(named, key=int))
    is_made_up = all(label == f"LABEL_{index}" for index, label in enumerate(labels))
    return () if is_made_up else labels


def _task(config: Mapping[str, Any], section: SourceSection) -> str:
    if not section.task:
        return task_of(config)
    if section.toolchain == "transformers5" and section.task != task_of(config):
        raise ConfigError(
            f"source.task: {section.task!r} given, but transformers' own exporter takes the class as it is, which is "
            f'for {task_of(config)}; leave the task out, or set toolchain = "optimum"'
        )
    return section.task


def export(source: Source, section: SourceSection, out: Path, *, progress: Progress, seed: int) -> Exported:
    """Export a Hugging Face directory.

    Raises:
        MissingToolchain: the exporter is not installed. CompileError: it fails, or the export differs.
        ConfigError: a task that cannot be seen, or pooling that has no ONNX form here.
    """
    from compiler.sources import (
        pooling,
        tidy,  # import onnx
    )

    config = detection.read_json(source.location / detection.CONFIG_FILE)
    task = _task(config, section)
    if is_generating(config) and task == task_of(config):
        return _generating(source, config, section, out, progress=progress, seed=seed)
    pooled = pooling.read(source.location) if task == FEATURES else None
    settings = {
        "directory": str(source.location.absolute()),
        "architecture": detection.architecture(config),
        "task": task,
        "seed": seed,
        "opset": section.opset,
    }
    facts: dict[str, Any] = {"framework": "huggingface", "task": task, "class": detection.architecture(config)}
    if task.endswith("classification") and (labels := labels_of(config)):
        facts["labels"] = list(labels)
    if pooled is not None:
        facts["pooling"] = str(pooled)
    if task == FEATURES:
        facts |= sentences.facts(source.location)
    job = tidy.Job(
        toolchain=section.toolchain,
        runner=f"export_{section.toolchain}.py",
        settings=settings,
        facts=facts,
        tolerance=section.tolerance,
    )
    after = partial(pooling.append, pooled=pooled) if pooled is not None else None
    made = tidy.export(job, out, progress=progress, after=after)
    how = f"{made.how}, {pooled} added" if pooled is not None else made.how
    return replace(made, how=how, files=companions.copy(source.location, out))


def _generating(
    source: Source, config: Mapping[str, Any], section: SourceSection, out: Path, *, progress: Progress, seed: int
) -> Exported:
    """Export an encoder-decoder as one graph that generates greedily."""
    from compiler.sources import encoder_decoders, tidy  # import onnx

    if section.toolchain != "optimum":
        raise ConfigError(
            f"source.toolchain: {section.toolchain!r} given, but {detection.architecture(config)} is an "
            'encoder-decoder, whose parts only Optimum exports; set toolchain = "optimum"'
        )
    settings = {
        "directory": str(source.location.absolute()),
        "architecture": detection.architecture(config),
        "task": task_of(config),
        "seed": seed,
        "opset": section.opset,
        "max_new_tokens": section.max_new_tokens,
        "prompt": list(section.prompt),
    }
    job = tidy.Job(
        toolchain=section.toolchain,
        runner="export_encoder_decoder.py",
        settings=settings,
        facts={"framework": "huggingface", "task": settings["task"], "class": settings["architecture"]},
        tolerance=section.tolerance,
    )
    assembly = encoder_decoders.Assembly()
    made = tidy.export(job, out, progress=progress, assemble=assembly)
    how = f"{made.how}, {assembly.words}"
    return replace(made, how=how, facts={**made.facts, **assembly.facts}, files=companions.copy(source.location, out))
