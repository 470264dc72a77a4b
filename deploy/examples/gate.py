#!/usr/bin/env python3
"""A workload for `workload.kind = "gate"` that acts only while its device owns: python3 gate.py /run/quorate/gate.sock

It runs on every device. What it is told holds until a moment on the boot clock, which is looked at before each act; nothing needs to
arrive for it to stop. Replace act(). An act that takes long must end before `until`, or be one that the receiver
refuses when it has seen a higher epoch.
"""

import socket
import sys
import threading
import time


class Gate:
    """Listens to the sidecar, and knows until when this device may act."""

    def __init__(self, path):
        self.path = path
        self.word = (0, 0)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as line:
                    line.connect(self.path)
                    for text in line.makefile(encoding="utf-8"):
                        role, epoch, rest = text.rstrip("\n").split(" ", 2)
                        self.word = (int(epoch), int(rest) if role == "owner" else 0)
            except (OSError, ValueError) as why:
                # What was told last goes on counting; it ends by itself.
                print(f"gate: {why}", file=sys.stderr)
            time.sleep(0.2)

    def epoch(self):
        """The epoch to act under, or None."""
        epoch, until = self.word
        return epoch if time.clock_gettime_ns(time.CLOCK_BOOTTIME) < until else None


def act(epoch):
    """What only one device of the site may do. Send the epoch along: the receiver refuses lower ones."""
    print(f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME)} {epoch}", flush=True)


def main():
    gate = Gate(sys.argv[1] if len(sys.argv) > 1 else "/run/quorate/gate.sock")
    while True:
        epoch = gate.epoch()
        if epoch is not None:
            act(epoch)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
