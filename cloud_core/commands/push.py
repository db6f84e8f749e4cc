"""``penstock core push``: gives a core a model that nobody compiled."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.cli.moved import moving, print_moved
from penstock.cli.output import output_option, print_result, progress
from penstock.cli.registry_options import Access, registry_options
from penstock.errors import ArtifactError, NotFound

if TYPE_CHECKING:
    from penstock.artifact.layout import Layout
    from penstock.registry.client import RegistryClient

_NUMBERED = re.compile(r"v([1-9][0-9]{0,8})")
_DATA = (".data", "_data")  # what exporters call a file of weights beside the graph


@click.command(
    epilog="""\b
Examples:
  penstock core push model.onnx --name digits
  penstock core push model.onnx --name digits --tag candidate
  penstock core push big.onnx --name big --file weights.bin
  penstock core push model.onnx --name digits --registry http://core:8000 -o json

\b
Nothing is promised of such a model: no certificate, no golden vectors, no variant for devices. Index, metadata and
answers say so ("certified": false). The first version of a model is its default; others wait for 'penstock core
default' or 'penstock core split'. A core that has a trust root serves nothing unsigned, and none of these.

Exit codes: 0 pushed, 1 no ONNX model, or refused, 4 no registry answers."""
)
@click.argument("model", metavar="MODEL.onnx", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="What the core calls the model: lower case, digits, dashes.")
@click.option("--tag", default="", help="Its version.  [default: the next of v1, v2, ...]")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A further file that the model reads; repeatable. MODEL.onnx.data is found by itself.",
)
@click.option("--max-batch", type=click.IntRange(1, 65536), default=64, show_default=True, help="Most rows of one run.")
@registry_options
@output_option
def push(model: Path, name: str, tag: str, files: Sequence[Path], max_batch: int, access: Access, output: str) -> None:
    """Push MODEL.onnx as it is, as a version that the core serves without a certificate."""
    from penstock.artifact import manifests
    from penstock.registry import transfer

    manifests.check_model_name(name)
    if tag:
        manifests.check_tag(tag)
    beside = [model.with_name(model.name + ending) for ending in _DATA]
    together = {path.name: path for path in (*(one for one in beside if one.is_file()), *files)}
    with tempfile.TemporaryDirectory() as scratch, access.client() as client:
        layout = _packed(Path(scratch) / "artifact", model, name, tag or _next_tag(client, name), together, max_batch)
        with moving(f"pushing to {access.url}") as report:
            moved = transfer.push(client, layout, report=report)
    progress("not certified: nothing is promised of this model, and no device gets it")
    print_result(output, moved, lambda: print_moved("pushed", moved))


def _packed(root: Path, model: Path, name: str, tag: str, files: dict[str, Path], max_batch: int) -> Layout:
    """Load the model as the core will, and write what it is into an artifact.

    Raises:
        ArtifactError: no ONNX model, or one that onnxruntime does not run. MissingExtra: onnxruntime is not installed.
    """
    from penstock.artifact.layout import Layout, VariantDraft
    from penstock.artifact.plain_model import plain_spec
    from penstock.runtime import EngineOptions, load_engine

    engine = load_engine("onnx", model, EngineOptions())
    try:
        spec = plain_spec(name, engine.inputs, engine.outputs, max_batch=max_batch)
    finally:
        engine.close()
    if "model.onnx" in files:
        raise ArtifactError(f"{files['model.onnx']}: a further file cannot be called model.onnx, as the graph is")
    layout = Layout.create(root)
    layout.pack([VariantDraft(spec=spec, weights=model, files=files)], tag=tag)
    return layout


def _next_tag(client: RegistryClient, name: str) -> str:
    try:
        tags = client.tags(name)
    except NotFound:
        return "v1"
    numbers = [int(found[1]) for tag in tags if (found := _NUMBERED.fullmatch(tag))]
    return f"v{max(numbers, default=0) + 1}"
