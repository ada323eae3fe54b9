"""One module at a time, without privileges."""
