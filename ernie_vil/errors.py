"""The two ways in which something outside the program can be wrong.

This module and :mod:`ernie_vil.pickles` stand below all packages and import none of them.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend: a wrong path, key, shape or value.

    The message names the file, line or key and says what to do. The tools print it without a traceback and exit
    with code 2.
    """


class BadRecord(ValueError):
    """One record of a data set cannot be used; the message names its file and line (or key) and the reason.

    Whoever iterates over data counts such records against a budget and names them; see
    :class:`ernie_vil.engine.data.SkipLog`.
    """
