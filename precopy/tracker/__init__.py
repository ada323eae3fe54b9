"""Which pages were written since the last look: the port, and its adapters."""
