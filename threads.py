"""Imported before torch: how long a thread that waits for the others of its process spins before it sleeps.

With torch's default, some milliseconds, two runs on the same cores are slow: each spins on a core that the other needs.
Images a second of `small` on two cores, two threads a run, float32: one run alone 1,437 with the default and 1,487 with
this count, two at once 238 and 1,729 in sum. GNU's OpenMP reads it, which torch has on Linux.
"""

import os

SPIN_COUNT = os.environ.setdefault("GOMP_SPINCOUNT", "1000")
