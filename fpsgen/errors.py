"""The errors people see: two lines and an exit code. A leaf: imports nothing of ours."""

from __future__ import annotations

OK = 0
INTERNAL = 1  # a mistake in fpsgen itself
USAGE = 2  # a wrong option or value
PARTIAL = 3  # a batch finished, some of its jobs failed
BAD_INPUT = 4  # a file given as input cannot be used
MODEL = 5  # a model is missing or not intact
ENVIRONMENT = 6  # GPU, driver or library unsuitable
DISK = 7  # output cannot be written
NETWORK = 8
NUMERIC = 9  # a numeric check failed, or --strict met a deviation
LOCKED = 11  # another run holds the folder
INTERRUPTED = 130  # SIGINT
TERMINATED = 143  # SIGTERM


class FpsgenError(Exception):
    """Something a person can mend.

    message: one line, what is wrong and with which value.
    remedy: one line, what to type or change.
    code: the exit code, one of this module's constants.
    """

    def __init__(self, message: str, remedy: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}"

    def __reduce__(self) -> tuple[type[FpsgenError], tuple[str, str, int]]:
        return type(self), (self.message, self.remedy, self.code)


def may_not_be_read(what: str, code: int) -> FpsgenError:
    """The error for what this user has no permission to read."""
    return FpsgenError(f"{what} may not be read", "check its permissions", code)


def lacks_permission(error: Exception) -> bool:
    """Whether an error, or what caused it, is that this user has no permission."""
    return isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError)
