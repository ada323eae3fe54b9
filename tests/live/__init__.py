"""Against the real kernel; they need root."""
