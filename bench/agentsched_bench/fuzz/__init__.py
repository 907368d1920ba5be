"""Throws bytes at a running proxy: raw sockets, twisted requests, an engine that talks nonsense."""
