"""Refusals in the words of the OCI distribution protocol. ``cloud_core.api.oci`` decides which HTTP status each is."""

from __future__ import annotations


class Refused(Exception):
    """The registry does not do what was asked. ``oci_code`` is from the OCI distribution specification 1.1's table.

    Not in the tree of ``penstock.errors``: it never leaves the distribution protocol.
    """

    def __init__(self, oci_code: str, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.oci_code = oci_code
        self.detail = detail


BLOB_UNKNOWN = "BLOB_UNKNOWN"
BLOB_UPLOAD_INVALID = "BLOB_UPLOAD_INVALID"
BLOB_UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
DENIED = "DENIED"
DIGEST_INVALID = "DIGEST_INVALID"
MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
MANIFEST_INVALID = "MANIFEST_INVALID"
MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
NAME_INVALID = "NAME_INVALID"
NAME_UNKNOWN = "NAME_UNKNOWN"
RANGE_INVALID = "RANGE_INVALID"  # not in the table; what registries answer 416 with
SIZE_INVALID = "SIZE_INVALID"
TOOMANYREQUESTS = "TOOMANYREQUESTS"
UNSUPPORTED = "UNSUPPORTED"
