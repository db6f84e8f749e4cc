"""Program for an interpreter that has transformers: a Llama of about a billion random weights, and what it answers.

``python make_random_llama.py OUT`` writes the model, a tokenizer of bytes, and ``OUT/references.json``: prompts, the
ids that transformers continues them with on the GPU, and by how much each leads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NEW = 8


def main(out: Path) -> None:
    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)} | {"<end>": 256}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>", model_max_length=4096).save_pretrained(out)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        bos_token_id=256,
        eos_token_id=256,
        initializer_range=0.05,
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.save_pretrained(out)
    rows = []
    for start in range(8):
        ids, margins = [start * 7 + at for at in range(32)], []
        with torch.inference_mode():
            for _ in range(NEW):
                logits = model(input_ids=torch.tensor([ids], device="cuda")).logits[0, -1].float()
                first, second = logits.topk(2).values.tolist()
                margins.append(first - second)
                ids = [*ids, int(logits.argmax())]
        rows.append({"ids": ids[:-NEW], "new": ids[-NEW:], "margins": margins})
    (out / "references.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
