"""The line between a test and its LMCache worker: one JSON command per line, answered with one line each."""

import json
import os
import sys
import traceback


def answers():
    """Where answers go. Standard output becomes standard error: LMCache logs there."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel


def obey(worker, channel):
    """Calls the worker's method that each command names, until there are no more."""
    print(json.dumps({"ready": os.getpid()}), file=channel)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=channel)
