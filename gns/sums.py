"""Where :mod:`gns.features.sums` stood before gns had rooms, for programs that import it from here."""

from gns.features.sums import foreach_sums, piecewise_sums, read_sums

__all__ = ["foreach_sums", "piecewise_sums", "read_sums"]
