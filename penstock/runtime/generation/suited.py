"""Load what onnxruntime-genai's builder wrote with the engine that suits it: slots where they can, else its own."""

from __future__ import annotations

from pathlib import Path

from penstock.runtime.generation import GenerationEngine, GenerationOptions, slots
from penstock.runtime.generation.decoder_file import read_config, unsuitable


def choose(directory: Path, provider: str = "cpu") -> str:
    """Name the engine that suits a model, as ``penstock.runtime.generation.load`` knows it; loads nothing.

    Raises:
        ArtifactError: no model for onnxruntime-genai.
    """
    return "onnxruntime" if unsuitable(read_config(directory), provider) is None else "onnxruntime-genai"


def load(directory: Path, options: GenerationOptions) -> GenerationEngine:
    """Load a model; onnxruntime-genai is imported only for one that slots cannot run.

    Raises:
        ArtifactError, MissingExtra: as the engine that was chosen.
    """
    if choose(directory, options.provider) == "onnxruntime":
        return slots.load(directory, options)
    from penstock.runtime.generation import genai  # behind an extra, which most devices do without

    return genai.load(directory, options)
