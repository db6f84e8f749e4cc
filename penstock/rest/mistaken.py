"""What answers where no HTTP was found: gRPC or TLS at that port, told by its first bytes. Pure; opens nothing."""

from __future__ import annotations

import re

# the first bytes as http.client and aiohttp quote them, made ASCII: an HTTP/2 SETTINGS frame, and a TLS alert
_HTTP2 = re.compile(r"\\x00\\x00(?:\\x[0-9a-f]{2}|.)\\x04\\x00")
_TLS = re.compile(r"\\x15\\x03")


def advice(complaint: str) -> str:
    """Return what to use instead where a complaint about a status line quotes another protocol; "" otherwise."""
    text = (complaint if "\\x" in complaint else ascii(complaint)).replace("\\\\", "\\")  # aiohttp quotes twice
    if _HTTP2.search(text):
        return "what answers there speaks HTTP/2 and not HTTP/1.1, as a gRPC port does; use grpc:// for it"
    if _TLS.search(text):
        return "what answers there speaks TLS; use https:// for it"
    return ""
