"""A live workload, and the demonstration that moves it."""
