"""The one error that a user's input can cause."""


class InputError(Exception):
    """What the user gave is wrong: a file, a field, a configuration.

    The message is a single line that says which file or field, what was found, what was
    expected and what to do. Jobs print it and exit with status 1, without a traceback.
    """
