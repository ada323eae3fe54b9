"""Tests inside guests: stock Debian kernels under software emulation.

``kernels`` gets a kernel, ``guest`` boots it and runs a command in it. By hand:
``python -m tests.vm --kernel 6.1 -- COMMAND…``.
"""
