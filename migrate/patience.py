"""How long others may take, on a machine that is slower than most.

MIGRATE_PATIENCE is a factor for the limits on what another process has to do meanwhile:
start, build, answer. It is for emulated and overloaded hosts, and for both sides alike.
"""

import math
import os
from typing import Final

VARIABLE: Final = "MIGRATE_PATIENCE"
FACTOR_MAX: Final = 1000.0


def patient(seconds: float) -> float:
    """So long on a machine as this; a factor that is none changes nothing."""
    return seconds * _factor(os.environ.get(VARIABLE, ""))


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        return 1.0
    return min(max(factor, 1.0), FACTOR_MAX) if math.isfinite(factor) else 1.0
