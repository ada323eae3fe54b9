"""The tests; a package, so that no folder in it can hide one of ours."""
