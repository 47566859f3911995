"""Types of NumPy arrays, for annotations anywhere in the package: each number format has one name.

The names say what an array holds, not its shape, which docstrings say.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Of any number format.
Array = NDArray[Any]
#: float64: the format that losses, eigenvalues and times are computed in.
Floats = NDArray[np.float64]
#: int64: counts and positions.
Integers = NDArray[np.int64]
#: int32: positions that a GPU kernel reads.
Integers32 = NDArray[np.int32]
#: uint8: pixels, as files of images hold them.
Bytes = NDArray[np.uint8]
#: True or False.
Flags = NDArray[np.bool_]
