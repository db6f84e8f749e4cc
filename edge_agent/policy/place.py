"""Is this the data directory that it was, or a copy of it? Decides from what can be seen of its place.

Two signs are robust enough. Copying a file, restoring it or moving it to another file system gives it another inode
*and* another time of change, which no program can set: the witness is a file that is written once and never again. Both
have to differ, because some file systems give new inodes with each mount, and a change of owner or mode moves the
time. And a board, or a virtual machine, has a serial number, which differs when a card or an image was copied as a
whole, inodes included.

What was refused, because it changes without a copy: the machine id (images without one get a new one with each boot or
container), the id of the boot, the host's name, hardware addresses of the network, and device numbers of file systems.

A wrong "elsewhere" costs nothing but a new name in the core's list. A copy that cannot be told here is told by the
core, which hears two agents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What can be seen of where a data directory is.

    Attributes:
        inode: of the witness file; 0 where it cannot be seen.
        changed_at_ns: the time of its last change, as the file system keeps it.
        serial: of the board or the virtual machine; "" where it is not told, or not to this user.
    """

    inode: int = 0
    changed_at_ns: int = 0
    serial: str = ""


NOWHERE = Place()
"""Nothing can be seen."""


def is_elsewhere(before: Place, now: Place) -> bool:
    """Say whether a directory is a copy. What cannot be seen says nothing."""
    if before.serial and now.serial and before.serial != now.serial:
        return True
    is_seen = bool(before.inode and now.inode)
    return is_seen and before.inode != now.inode and before.changed_at_ns != now.changed_at_ns


def learned(before: Place, now: Place) -> Place:
    """Return what to remember of a directory that is where it was: what can be seen now, else what could before."""
    found = replace(now, serial=now.serial or before.serial)
    return found if now.inode else replace(found, inode=before.inode, changed_at_ns=before.changed_at_ns)
