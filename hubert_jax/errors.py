"""What can end a job that is not a defect of this package."""


class InputError(Exception):
    """What the user gave is wrong: a file, a field, a configuration.

    The message is a single line that says which file or field, what was found, what was
    expected and what to do. Jobs print it and exit with status 1, without a traceback.
    """


class Diverged(Exception):
    """Training left the finite numbers; the input may be perfectly right.

    The message is a single line that says at which step, and from where to go on. Jobs print it
    and exit with status 3.
    """
