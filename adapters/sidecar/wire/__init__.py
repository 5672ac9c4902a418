"""Messages of midstream.v1 from the library's values, and back."""

from __future__ import annotations
