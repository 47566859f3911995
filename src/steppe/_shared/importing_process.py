"""Which process has imported steppe: one that is forked from it has none of its threads.

``import steppe`` loads this module at once, and engines only when they are used, which may be after
the fork.
"""

import os

#: The identity of that process.
IMPORTED_IN = os.getpid()
