"""The core's durable state. The only package that imports SQLAlchemy."""

from __future__ import annotations

from penstock.errors import missing_extra

try:
    import sqlalchemy  # noqa: F401  # the extra is checked once, here
except ImportError as error:
    raise missing_extra("SQLAlchemy", "core", "the core's state") from error

from cloud_core.state.database import Database, Transaction, to_its_end, uncancelled

__all__ = ["Database", "Transaction", "to_its_end", "uncancelled"]
