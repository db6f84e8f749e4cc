"""Several jobs of ``export_torch`` in one process, for what goes wrong in each; and ExportedProgram files to export.

Importing torch takes seconds, and most mistakes are found before anything is exported. Runs in toolchain ``torch``.
"""

from __future__ import annotations

import sys
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


if __name__ == "__main__":
    serve(attempts)
