"""`python -m midstream.adapters.cli`."""

from __future__ import annotations

from midstream.adapters.cli import main

main()
