"""Generate penstock/rpc/pb from proto/. ``--check`` fails when the committed code is not what proto/ generates.

The messages are put into a private descriptor pool (``penstock.rpc.pb.POOL``): tritonclient and kserve define the same
``inference.*`` names in the default pool, and one process must be able to import both.
"""

from __future__ import annotations

import argparse
import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "penstock" / "rpc" / "pb"
SOURCES = {"inference/oip.proto": "oip", "penstock/v1/fleet.proto": "fleet"}


def generate(source: str, stem: str) -> dict[str, str]:
    """Generate file name -> content for one .proto."""
    with tempfile.TemporaryDirectory() as scratch:
        well_known = str(importlib.resources.files("grpc_tools") / "_proto")
        proto_path = ROOT / "proto"
        # protoc writes beside the source's path; a flat copy gives flat module names
        flat = Path(scratch) / "in"
        flat.mkdir()
        (flat / f"{stem}.proto").write_text((proto_path / source).read_text())
        out = Path(scratch) / "out"
        out.mkdir()
        arguments = ["protoc", f"-I{flat}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}",
                     f"--grpc_python_out={out}", f"{stem}.proto"]  # fmt: skip
        if protoc.main(arguments) != 0:
            raise SystemExit(f"protoc failed on {source}")
        files = {path.name: path.read_text() for path in sorted(out.iterdir())}
    return {name: _rewrite(name, text, stem) for name, text in files.items()}


def _rewrite(name: str, text: str, stem: str) -> str:
    if name == f"{stem}_pb2.py":
        default = "_descriptor_pool.Default().AddSerializedFile"
        if text.count(default) != 1:
            raise SystemExit(f"{name}: protoc's output changed; teach scripts/generate_proto.py its new form")
        text = text.replace(default, "_POOL.AddSerializedFile")
        text = text.replace(
            "from google.protobuf import descriptor_pool as _descriptor_pool\n",
            "from penstock.rpc.pb import POOL as _POOL\n",
        )
    if name.endswith("_grpc.py"):
        text = text.replace(f"import {stem}_pb2 as", f"from penstock.rpc.pb import {stem}_pb2 as")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the committed code is stale")
    check = parser.parse_args().check
    stale = []
    for source, stem in SOURCES.items():
        for name, text in generate(source, stem).items():
            path = TARGET / name
            if path.exists() and path.read_text() == text:
                continue
            stale.append(name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"stale: {', '.join(stale)}; run 'make proto' and commit", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
