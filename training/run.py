"""What a run does with the signals that stop it."""

import os
import signal
import time


class StopSignals:
    """Within `with`: the first Ctrl-C or SIGTERM is kept in .received, a second ends the process.

    Launchers may send one twice, to a process and to its group, and Linux sends the signal of a parent's death once
    for each thread of the parent: what comes within REPEAT seconds is no second one.
    """

    REPEAT = 0.5

    def __enter__(self):
        self.received = None
        self.handlers = {
            number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def receive(self, number, frame):
        if self.received is None:
            self.received, self.at = number, time.monotonic()
        elif time.monotonic() > self.at + self.REPEAT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
