"""The tables of the protocol, walked whole."""
