"""What may be the name of a device: one rule, for the agent's settings, the core's front door and the command line.

An id is typed on command lines, written into tables and logs, and compared byte by byte. So it has characters that look
the same everywhere, none that a shell, a path or a terminal takes for something else, and a length that has an end.
"""

from __future__ import annotations

import re

from penstock.errors import InvalidInput

MAX_LENGTH = 128

_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:-]{{0,{MAX_LENGTH - 1}}}")
_MAX_SHOWN = 40


def check_device_id(device_id: str) -> str:
    """Return the id unchanged.

    Raises:
        InvalidInput: it is not a device id.
    """
    if _ID.fullmatch(device_id):
        return device_id
    shown = ascii(device_id[:_MAX_SHOWN])  # what cannot be seen, or changes the direction of a line, is spelt out
    if len(device_id) > _MAX_SHOWN:
        shown += f"... ({len(device_id)} characters)"
    raise InvalidInput(
        f"device_id: {shown} is not a device id; it must be 1 to {MAX_LENGTH} letters, digits and . _ : - "
        "that begin with a letter or a digit",
        field="device_id",
    )
