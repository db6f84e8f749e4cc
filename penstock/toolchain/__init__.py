"""Toolchains: pinned, isolated Python environments for heavy backends, run as subprocesses with files and JSON.

``require`` finds one, ``call`` runs a program in it, ``describe`` says what is in it, ``install.install`` makes it.
Nothing of a toolchain is ever imported into this process. ``call_here`` runs a module of ours in the same way, in this
environment but in a process of its own.
"""

from __future__ import annotations

from penstock.toolchain.call import call, call_here, usable_processors
from penstock.toolchain.definitions import TOOLCHAINS, Toolchain
from penstock.toolchain.locations import describe, require

__all__ = ["TOOLCHAINS", "Toolchain", "call", "call_here", "describe", "require", "usable_processors"]
