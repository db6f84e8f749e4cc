"""Small encoder-decoders with random weights, exported one after the other in one process: importing takes seconds.

Runs in toolchain ``optimum``. Weights are large, so that answers are of many tokens and end at different places.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3] / "compiler" / "runners"))

import export_encoder_decoder
import torch
import transformers
from protocol import InputError, serve

SIZES = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.6,
}  # fmt: skip
SPREAD = 2.0  # of T5's weights


def exports(job: dict[str, Any]) -> dict[str, Any]:
    """Make each model of ``job["models"]`` and export it; its result, or the message that refuses it."""
    results = {}
    for name, asked in job["models"].items():
        directory = Path(job["out"]) / name
        model, task = _MODELS[asked.pop("kind", name)]()
        for setting, value in asked.pop("settings", {}).items():
            setattr(model.generation_config, setting, value)
        model.save_pretrained(directory)
        settings = {
            "directory": str(directory),
            "architecture": type(model).__name__,
            "task": task,
            "out": str(directory),
        }
        try:
            results[name] = export_encoder_decoder.export(
                {"seed": 0, "opset": 0, "max_new_tokens": 0, "prompt": [], **settings, **asked}
            )
        except InputError as error:
            traceback.print_exc()
            results[name] = {"refused": str(error)}
    return results


def _t5() -> tuple[Any, str]:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
        initializer_factor=SPREAD, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config), "text2text-generation"


def _bart() -> tuple[Any, str]:
    config = transformers.BartConfig(**SIZES, max_position_embeddings=48, forced_bos_token_id=0)
    return transformers.BartForConditionalGeneration(config), "text2text-generation"


def _marian() -> tuple[Any, str]:
    ends = {"pad_token_id": 39, "eos_token_id": 0, "decoder_start_token_id": 39, "forced_eos_token_id": 0}
    model = transformers.MarianMTModel(transformers.MarianConfig(**SIZES, **ends, max_position_embeddings=48))
    model.generation_config.update(bad_words_ids=[[39]], num_beams=4, max_length=31)
    return model, "text2text-generation"


def _whisper() -> tuple[Any, str]:
    config = transformers.WhisperConfig(
        **SIZES, num_mel_bins=8, max_source_positions=20, max_target_positions=30, decoder_start_token_id=3,
        pad_token_id=1, bos_token_id=1, eos_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    settings = {
        "suppress_tokens": [5, 6, 7], "begin_suppress_tokens": [8, 1], "no_timestamps_token_id": 9,
        "is_multilingual": True, "lang_to_id": {"<|en|>": 10}, "task_to_id": {"transcribe": 12},
    }  # fmt: skip
    settings["_from_model_config"] = False  # transformers reads none but its own settings from what it made itself
    for name, value in settings.items():  # most are Whisper's own, which update() passes over
        setattr(model.generation_config, name, value)
    return model, "automatic-speech-recognition"


def _trocr() -> tuple[Any, str]:
    encoder = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    decoder = transformers.TrOCRConfig(
        vocab_size=40, d_model=16, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32, init_std=0.6,
        max_position_embeddings=26, is_decoder=True, add_cross_attention=True, cross_attention_hidden_size=16,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = transformers.VisionEncoderDecoderModel(config=config)
    model.generation_config = transformers.GenerationConfig(decoder_start_token_id=2, pad_token_id=1, eos_token_id=2)
    return model, "image-to-text"


_MODELS = {"t5": _t5, "bart": _bart, "marian": _marian, "whisper": _whisper, "trocr": _trocr}

if __name__ == "__main__":
    torch.manual_seed(4)
    torch.set_num_threads(1)
    serve(exports)
