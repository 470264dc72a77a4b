#!/usr/bin/env python3
"""A workload that says when it is ready (workload.ready = "notify"), what it is at, and that it lives.

The protocol is sd_notify(3): a datagram to the socket that NOTIFY_SOCKET names. Whatever speaks it for systemd works
here as well (libsystemd, the crate sd-notify, Microsoft.Extensions.Hosting.Systemd, `systemd-notify` from a shell).
"""

import os
import signal
import socket
import sys
import time


def notify(words):
    """Says something to the sidecar. Without one there is nobody to hear it, and that is no failure."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
            # A sidecar that does not read must not hold up the plant.
            door.settimeout(1)
            try:
                door.sendto(words.encode(), path)
            except OSError as error:
                print("nobody hears it:", error, file=sys.stderr)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Twice in the time after which silence counts as a failure.
    beat = int(os.environ.get("WATCHDOG_USEC", "10000000")) / 2e6
    notify("STATUS=loading the model")
    time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 0)
    notify("READY=1\nSTATUS=controlling under epoch " + os.environ["QUORATE_EPOCH"])
    while True:
        # Here is the work. What is said in between shows that it goes on, so say it from the loop that works.
        time.sleep(beat)
        notify("WATCHDOG=1")


if __name__ == "__main__":
    main()
