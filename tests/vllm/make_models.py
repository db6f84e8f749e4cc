"""Program for the toolchain's interpreter: trains a tiny Llama on Python's own sources, and says how it goes on.

``python make_models.py OUT`` writes ``OUT/bytes``, whose two heads two ranks can share, ``OUT/three-heads``, which they
cannot, and ``OUT/references.json``: prompts, the ids that transformers answers greedily, and by how much each leads.
"""

from __future__ import annotations

import json
import random
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

STEPS, BATCH, WINDOW = 400, 16, 96
END = 256
CONTEXT = 1024
NEW = 24


def main(out: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    random.seed(0)
    library = Path(sysconfig.get_paths()["stdlib"])
    names = (
        "ast",
        "argparse",
        "heapq",
        "inspect",
        "pathlib",
        "shutil",
        "subprocess",
        "textwrap",
        "threading",
        "typing",
    )
    text = b"\n".join((library / f"{name}.py").read_bytes() for name in names)
    alphabet = tokenizer()
    ids = torch.tensor(alphabet.encode(text.decode("utf-8")), dtype=torch.long)
    model = made(heads=2)
    train(model, ids)
    save(model, alphabet, out / "bytes")
    save(made(heads=3), alphabet, out / "three-heads")
    prompts = [
        "import ",
        "def ",
        "    return self.",
        "class ",
        "raise ValueError(",
        "for name in ",
        "x" * 300 + "\nif ",
    ]
    rows = [greedy(model, alphabet.encode(prompt)) for prompt in prompts]
    (out / "references.json").write_text(json.dumps(rows))


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and one that ends an answer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)} | {"<end>": END}
    plain = Tokenizer(models.BPE(vocabulary, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>", model_max_length=CONTEXT)


def made(heads: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=END + 8,
            hidden_size=heads * 32,
            intermediate_size=heads * 64,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            bos_token_id=END,
            eos_token_id=END,
            tie_word_embeddings=True,
        )
    ).float()


def train(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=STEPS)
    for _ in range(STEPS):
        starts = [random.randrange(len(ids) - WINDOW) for _ in range(BATCH)]
        rows = torch.stack([ids[start : start + WINDOW] for start in starts])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    print(f"loss {loss.item():.2f}", flush=True)
    model.eval()


def save(model: LlamaForCausalLM, alphabet: PreTrainedTokenizerFast, directory: Path) -> None:
    model.save_pretrained(directory)
    alphabet.save_pretrained(directory)


def greedy(model: LlamaForCausalLM, ids: list[int]) -> dict[str, Any]:
    new: list[int] = []
    margins: list[float] = []
    with torch.inference_mode():
        for _ in range(NEW):
            logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            new.append(int(logits.argmax()))
            margins.append(round(first - second, 4))
    return {"ids": ids, "new": new, "margins": margins}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
