"""Load what onnxruntime-genai's builder wrote with the engine that suits it: slots where they can, else its own."""

from __future__ import annotations

from pathlib import Path

from penstock.runtime.generation import GenerationEngine, GenerationOptions, slots
from penstock.runtime.generation.decoder_file import read_config, unsuitable


def load(directory: Path, options: GenerationOptions) -> GenerationEngine:
    """Load a model; onnxruntime-genai is imported only for one that slots cannot run.

    Raises:
        ArtifactError, MissingExtra: as the engine that was chosen.
    """
    if unsuitable(read_config(directory), options.provider) is None:
        return slots.load(directory, options)
    from penstock.runtime.generation import genai  # behind an extra, which most devices do without

    return genai.load(directory, options)
