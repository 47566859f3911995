"""The loss that all instruments measure: the mean over all samples, as a function of parameters.

Operators, spectra and surfaces are built on this subpackage; it imports none of them.
"""
