"""Counting what held and what did not, and saying so as it happens."""

import sys


class Checks:
    """Named checks; `closing_line` is the last line that a test prints."""

    def __init__(self):
        self.passed, self.failed, self.context = 0, [], ""

    def that(self, held, what, detail=""):
        """Counts one check; `detail` says what was seen instead."""
        if held:
            self.passed += 1
            print(f"  ok    {what}", flush=True)
        else:
            self.failed.append(f"{self.context}: {what}" if self.context else what)
            print(f"  FAIL  {what}{': ' + str(detail) if detail != '' else ''}", flush=True)
        return bool(held)

    def equal(self, got, want, what):
        return self.that(got == want, what, f"got {got!r}, expected {want!r}")

    def heading(self, text):
        self.context = text
        print(f"{text}", flush=True)

    def note(self, text):
        print(f"        {text}", flush=True)

    def closing_line(self):
        """Prints the summary and returns the exit status."""
        for what in self.failed:
            print(f"failed: {what}", file=sys.stderr)
        sys.stderr.flush()
        print(f"{self.passed} passed, {len(self.failed)} failed", flush=True)
        return 0 if self.passed and not self.failed else 1
