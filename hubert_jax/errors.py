"""What can end a job that is not a defect of this package."""

CRASHED = 70  # exit status of a crash: EX_SOFTWARE of sysexits.h


class InputError(Exception):
    """A file, a field or a configuration is wrong.

    The message is one line: which, what was found, what was expected, what to do. Jobs print it
    and exit with status 1. Names may come from anywhere, so it is made `printable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """The text in one line; what a terminal would obey, or cannot show, is written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else " "
        if character in "\n\r\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )


class Unavailable(Exception):
    """A service, such as that of a bucket, does not do what it is asked, whatever was tried.

    The message is one line: of what, and why. Jobs print it and exit with `CRASHED`: nothing is
    wrong with what they were given, and the same command goes on later.
    """


class Diverged(Exception):
    """Training left the finite numbers.

    The message is one line: at which step, and from where to go on. Jobs print it and exit with
    status 3.
    """


class Preempted(Exception):
    """The cluster takes this machine away, and training has saved what it has.

    The message is one line: at which step. Jobs print it and exit with status 75, upon which the
    same command is to be given again.
    """
