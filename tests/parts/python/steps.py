"""JSON lines and exit codes, as every part has them."""

import json
import socket
import sys

HOLDS, DOES_NOT_HOLD, BAD_USAGE, NOT_REACHABLE = 0, 1, 2, 3

_failed = False


def check(step, ok, **fields):
    """Prints one step with its verdict and returns the verdict."""
    global _failed
    _failed = _failed or not ok
    note(step, ok=ok, **fields)
    return ok


def note(step, **fields):
    """Prints one step that cannot fail. An error of None is left out."""
    if fields.get("error", "") is None:
        del fields["error"]
    print(json.dumps({"step": step, **fields}, separators=(",", ":")), flush=True)


def end():
    """Prints the verdict over all steps and exits with it."""
    note("result", ok=not _failed)
    sys.exit(DOES_NOT_HOLD if _failed else HOLDS)


def connect(path, timeout):
    """A connected Unix socket; a path that begins with '@' is abstract."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        connection.connect("\0" + path[1:] if path.startswith("@") else path)
    except OSError as error:
        check("reach", False, error=str(error))
        sys.exit(NOT_REACHABLE)
    return connection
