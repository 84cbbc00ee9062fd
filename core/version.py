"""The version of Shoal: the only place that states it."""

from __future__ import annotations

VERSION = "0.1.0"
QDRANT_VERSION = "1.19.0"
"""Whose REST API this is; clients compare it with their own version."""
