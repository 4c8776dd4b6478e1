"""The one error of this folder: bytes that are not what they claim to be."""


class FormatError(ValueError):
    """Bytes break their format. The message is one lower-case line: what was wrong, what was wanted."""
