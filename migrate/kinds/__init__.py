"""What a process holds: one file for each kind of thing, dump beside restore."""
