"""Several jobs of ``export_torch`` in one process, for what goes wrong in each; and ExportedProgram files to export.

Importing torch takes seconds, and most mistakes are found before anything is exported. Runs in toolchain ``torch``.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3] / "compiler" / "runners"))

import export_torch
import torch
from protocol import InputError, serve


def attempts(job: dict[str, Any]) -> dict[str, Any]:
    """The message of each job of ``job["jobs"]`` by its name; "" where it went well."""
    if "programs" in job:
        _programs(Path(job["programs"]))
    messages = {}
    for name, settings in job["jobs"].items():
        try:
            export_torch.export(settings)
            messages[name] = ""
        except InputError as error:
            messages[name] = str(error)
    return messages


def _programs(directory: Path) -> None:
    module = torch.nn.Linear(4, 3).eval()
    x = torch.randn(2, 4)
    free = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=free), directory / "free.pt2")
    torch.export.save(torch.export.export(module, (x,)), directory / "fixed.pt2")
    (directory / "junk.pt2").write_bytes(b"junk")
    _with_pickle(directory / "free.pt2", directory / "evil.pt2", marker=directory / "evil-was-here")


def _with_pickle(program: Path, target: Path, *, marker: Path) -> None:
    """The same program, whose example inputs are a pickle that makes a file when it is loaded."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    evil = io.BytesIO()
    torch.save({"x": Evil()}, evil)
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            is_examples = "sample_inputs" in name and name.endswith(".pt")
            archive.writestr(name, evil.getvalue() if is_examples else source.read(name))


if __name__ == "__main__":
    serve(attempts)
