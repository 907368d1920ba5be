"""Recorded requests of real agent clients, and how well identification tells them apart."""

from __future__ import annotations
