"""The memory of a process tree that will not hold still."""
