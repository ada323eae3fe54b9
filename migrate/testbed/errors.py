"""The one error of the test bed."""


class TestBedError(Exception):
    """The bed could not do what was asked; the message is a whole sentence."""

    __test__ = False  # the name begins like that of a test class
