"""Language models that are really built: the same bytes each time, and what every option does to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler.generation import built_model, compare, gguf
from compiler.passes import genai
from compiler.passes.job import PassJob
from compiler.recipe.targets import GENAI_CPU, resolve
from penstock import toolchain as toolchains
from penstock import wording
from penstock.artifact.blobs import digest_of_file
from penstock.errors import CompileError
from penstock.generation import chat_template, golden_chats

pytestmark = pytest.mark.timeout(900)  # training, where nothing was kept from another session

HERE = Path(__file__).parent
TEMPLATE = """\
{% for message in messages %}
    {%- if message.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
    {{- '<|' + message.role + '|>' + message.content + '\\n' }}
{%- endfor %}
{{- tools | tojson if tools else '' }}{{ strftime_now('%Y-%m-%d') }}
"""


def job(source: Path, out: Path, **options: Any) -> PassJob:
    out.mkdir(exist_ok=True)
    return PassJob(source=source, out=out, target=resolve(GENAI_CPU), options=options)


def test_the_same_model_gives_the_same_bytes_wherever_it_lies(chain: Any, edge_int4: Any) -> None:
    first = edge_int4[0]
    digests = [
        {path.name: digest_of_file(path) for path in directory.iterdir()}
        for directory in (first.directory, chain.directory / "edge-int4")
    ]
    assert digests[0] == digests[1]
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= set(digests[0])
    assert set(genai.files(first.directory)) == set(digests[0]) - {"model.onnx"}


def test_what_was_quantized_is_counted(edge_int4: Any) -> None:
    made = edge_int4[1]
    assert made.model == "model.onnx"
    assert made.facts["nodes"]["MatMulNBits"] >= 6
    assert made.facts["quantized_weight_bytes"] > made.facts["other_weight_bytes"] / 4
    assert made.facts["context_length"] == 256
    assert made.facts["versions"]["transformers"] == "4.57.6"
    weights = made.facts["quantized_weight_bytes"] + made.facts["other_weight_bytes"]
    size = f"{wording.size(weights)} of weights, "
    assert made.summary.startswith(f"LlamaForCausalLM: int4 by blocks of 32 (default), {size}")


def test_nodes_sent_back_to_float_stay_float(tiny: Any, edge_int4: Any, tmp_path: Path) -> None:
    node = "/model/layers.0/mlp/down_proj/MatMul"
    source = tmp_path / "with a template"
    shutil.copytree(tiny.edge, source)
    (source / chat_template.FILE).write_text(TEMPLATE)
    made = genai.run(replace(job(source, tmp_path / "kept", precision="int8"), keep_float=frozenset({node})))
    assert made.facts["nodes"]["MatMul"] == 1
    assert made.facts["nodes"]["MatMulNBits"] == edge_int4[1].facts["nodes"]["MatMulNBits"] - 1
    assert made.facts["quantized_weight_bytes"] > edge_int4[1].facts["quantized_weight_bytes"]
    # the same build says what transformers makes of conversations, and a model without a template has none to make
    files = {path.name: path.read_bytes() for path in (tmp_path / "kept").glob("*.json*")}
    files |= {path.name: path.read_bytes() for path in (tmp_path / "kept").glob("*.jinja")}
    golden_chats.check_files(files)
    golden = json.loads(files[golden_chats.FILE])
    assert golden["made_by"] == "transformers 4.57.6"
    assert [chat["ids"] is None for chat in golden["chats"]] == [False, True, False, False]
    assert golden_chats.FILE in genai.files(tmp_path / "kept")
    assert not (edge_int4[0].directory / golden_chats.FILE).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"algorithm": "k_quant"},
            "algorithm k_quant packs zero points in pairs, .* odd number of blocks of 32 weights",
        ),
        ({"precision": "int8", "algorithm": "rtn"}, "asked for int8, the algorithm rtn of .* 0.15.2 gave 4 bits"),
        ({"block_size": 128}, "its own engine cannot run: .*block_size 128.*try smaller blocks"),
    ],
)
def test_options_that_give_a_broken_model_are_refused(
    tiny: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """The builder crashes in a reshape, or writes a model without a word that fails at its first token."""
    with pytest.raises(CompileError, match=message):
        genai.run(job(tiny.edge, tmp_path / "out", **options))


def test_fp16_is_built_for_cuda_without_a_gpu_or_a_network(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    sent = {
        "source": tiny.edge, "out": out, "work": tmp_path, "precision": "fp16", "provider": "cuda", "options": {},
        "keep_float": [], "chats": [], "chats_at": golden_chats.AT.isoformat(),
    }  # fmt: skip
    found = toolchains.call("optimum", HERE / "offline_runner.py", sent)
    assert (found["quantized_weight_bytes"], found["nodes"]["GroupQueryAttention"]) == (0, 1)
    config = json.loads((out / "genai_config.json").read_text())
    assert [list(entry) for entry in config["model"]["decoder"]["session_options"]["provider_options"]] == [["cuda"]]


@pytest.fixture(scope="module")
def gguf_file(tiny: Any) -> Path:
    """The edge model in Q8_0; what the gguf library can read is checked on the way."""
    path: Path = tiny.scratch / "edge.gguf"
    wrote = toolchains.call("optimum", HERE / "gguf_runner.py", {"model": tiny.edge, "out": path, "type": "Q8_0"})
    assert {int(number): name for number, name in wrote["types"].items()} == dict(gguf.TENSOR_TYPES)
    assert set(wrote["readable"]) == set(gguf.READABLE)
    return path


def test_a_gguf_file_says_what_its_original_says(
    gguf_file: Path, edge_fp32: Any, texts: tuple[str, ...], tmp_path: Path, toolchain: Callable[[str], str]
) -> None:
    toolchain("transformers5")
    assert gguf.read_header(gguf_file).tensor_types["Q8_0"] == 8
    made = genai.run(job(gguf_file, tmp_path / "out", precision="fp32"))
    assert made.facts["gguf"] == "edge.gguf"
    before, after = (
        built_model.likelihoods(built_model.BuiltModel(directory=directory), texts[:4])
        for directory in (edge_fp32.directory, tmp_path / "out")
    )
    change = compare.change(before, after)
    assert abs(change.increase.value) < 0.01
    assert change.agreement.value > 0.9
    ends = [json.loads((directory / "genai_config.json").read_text())["model"]["eos_token_id"]
            for directory in (edge_fp32.directory, tmp_path / "out")]  # fmt: skip
    assert ends[0] == ends[1]


def test_a_tokenizer_that_the_engine_reads_wrongly_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    """transformers 4 makes a byte-level tokenizer of a GGUF file look like SentencePiece to the engine."""
    with pytest.raises(CompileError, match="own tokenizer splits plain text into other tokens"):
        genai.run(job(gguf_file, tmp_path / "out", precision="fp32", toolchain="optimum"))
