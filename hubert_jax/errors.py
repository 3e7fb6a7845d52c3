"""What can end a job that is not a defect of this package."""


class InputError(Exception):
    """A file, a field or a configuration is wrong.

    The message is one line: which, what was found, what was expected, what to do. Jobs print it
    and exit with status 1.
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
