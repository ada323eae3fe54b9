"""The rules of the house, judged by machine."""
