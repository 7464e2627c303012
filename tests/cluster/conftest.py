"""Only `make test-ray` runs these tests: they need Ray, and minutes."""

from __future__ import annotations

import sys

collect_ignore_glob = [] if "tests.cluster.on_ray" in sys.modules else ["test_*.py"]
