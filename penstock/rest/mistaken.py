"""What answers where something else was expected: gRPC or TLS at that port, told by its first bytes, or a web server's
page where an error document should be. Pure; opens nothing.
"""

from __future__ import annotations

import html
import re

from penstock.wire.tls import trouble

# the first bytes as http.client and aiohttp quote them, made ASCII: an HTTP/2 SETTINGS frame, and a TLS alert
_HTTP2 = re.compile(r"\\x00\\x00(?:\\x[0-9a-f]{2}|.)\\x04\\x00")
_TLS = re.compile(r"\\x15\\x03")
_PAGE = re.compile(r"\s*<(?:!doctype\s+html|html)\b", re.IGNORECASE)
_TITLE = re.compile(r"<title>\s*(?:\d{3}\s+)?(.*?)\s*</title>", re.IGNORECASE | re.DOTALL)


def advice(complaint: str) -> str:
    """Return what to use instead where a complaint about a status line quotes another protocol; "" otherwise."""
    text = (complaint if "\\x" in complaint else ascii(complaint)).replace("\\\\", "\\")  # aiohttp quotes twice
    if _HTTP2.search(text):
        return "what answers there speaks HTTP/2 and not HTTP/1.1, as a gRPC port does; use grpc:// for it"
    if _TLS.search(text):
        return "what answers there speaks TLS; use https:// for it"
    return ""


def words_in(body: bytes, *, limit: int = 500) -> str:
    """Return what a body that is no error document says: what to do, a page's title, or its beginning."""
    text = body[:limit].decode("utf-8", "replace").strip()
    if said := trouble(text):
        return said
    if not _PAGE.match(text):
        return text
    title = _TITLE.search(text)
    return " ".join(html.unescape(title[1]).split()) if title else "a page of HTML"
