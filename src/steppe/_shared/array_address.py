"""Where NumPy's arrays lie, for compiled code that is given addresses, as the CPU engine's is."""

from steppe._shared.array_types import Array


def address_of(array: Array) -> int:
    """Return where an array lies; four times as fast as ``array.ctypes``."""
    address: int = array.__array_interface__["data"][0]
    return address
