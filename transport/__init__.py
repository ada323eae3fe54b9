"""Two agents agree about one migration; processes and pages are opaque here."""
