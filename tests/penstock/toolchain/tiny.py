"""A toolchain small enough to install in a test: what it is made of."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from penstock.toolchain import lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """The toolchain ``tiny``, and the directories that it lives in.

    Attributes:
        wheels: where pip finds packages; nothing else can be found.
        root: where toolchains are installed.
        rewrite: change the lock file's text.
    """

    wheels: Path
    root: Path
    lock_file: Path

    @property
    def directory(self) -> Path:
        return self.root / "tiny"

    def rewrite(self, change: Callable[[str], str]) -> None:
        self.lock_file.write_text(change(self.lock_file.read_text(encoding="utf-8")), encoding="utf-8")
        lock.read.cache_clear()


def make_wheel(directory: Path, name: str, version: str, code: str = "") -> str:
    """A wheel with one module and one script; its hash."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f'__version__ = "{version}"\n{code}\n\ndef main():\n    print("{name} runs")\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}={name}:main\n",
    }
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(zipfile.ZipInfo(file), text)
        record = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), record)
    return hashlib.sha256(path.read_bytes()).hexdigest()
