"""Programs that arrange something, are moved and check themselves; the harness."""
