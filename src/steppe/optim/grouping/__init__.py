"""Sort a model's parameters into groups by rules on names and module types, and by layers.

:func:`param_groups` (in ``make``) is public as ``steppe.optim.param_groups``. ``rules`` has what a
user's rules match, ``exempt`` which parameters decay no weights, ``layers`` which layer a parameter
is in, and ``groups`` the list that is returned and its table.
"""

from steppe.optim.grouping.groups import ParamGroups
from steppe.optim.grouping.make import param_groups

__all__ = ["ParamGroups", "param_groups"]
