"""Makes `frames.py` importable under a name of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if "top_frames" not in sys.modules:
    spec = importlib.util.spec_from_file_location("top_frames", Path(__file__).parent / "frames.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["top_frames"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
