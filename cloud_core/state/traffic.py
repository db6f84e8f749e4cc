"""What operators said about the traffic of models, one document each.

SQL only: documents are opaque JSON here, and what they mean is ``cloud_core.policy.traffic``'s.
"""

from __future__ import annotations

from sqlalchemy import delete, select

from cloud_core.state import tables
from cloud_core.state.database import Transaction, upsert


def read(transaction: Transaction) -> dict[str, str]:
    """Return the documents, by model."""
    return {row.model: row.document for row in transaction.execute(select(tables.traffic))}


def write(transaction: Transaction, model: str, document: str, at: float) -> None:
    """Keep what was said of a model; "" forgets it."""
    if document:
        upsert(transaction, tables.traffic, [{"model": model, "document": document, "changed_at": at}])
    else:
        transaction.execute(delete(tables.traffic).where(tables.traffic.c.model == model))
