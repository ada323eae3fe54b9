"""A process leaves one host and goes on at another."""
