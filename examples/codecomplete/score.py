"""How good a completed name is: what part of it is the one that it is compared with. The metric of ``open_text.toml``.

Whoever runs the device copies this file there and names it in the agent's settings, so that audits grade as the
certificate did: ``[cascade.metric_of] codecomplete = "/etc/penstock/score.py:overlap"``.
"""

from __future__ import annotations

from difflib import SequenceMatcher


def overlap(prompt: str, answer: str, reference: str) -> float:
    """Return the share of letters, from 0 to 1, that stand in both answers in the same order."""
    del prompt  # another metric may ask whether the answer fits it
    if not answer and not reference:
        return 1.0
    return SequenceMatcher(None, answer, reference, autojunk=False).ratio()
