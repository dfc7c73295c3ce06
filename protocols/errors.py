"""What `protocols/` raises: it says what broke; the task adds who and at which stage."""


class ProtocolError(Exception):
    """A peer's message breaks the protocol (malformed, out of order, inconsistent)."""


class ParameterError(Exception):
    """No parameter set serves the job safely; the text says which figure has to change."""
