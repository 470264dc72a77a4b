//! Microsoft's own service SDK for Python against the emulator: what it accepts, the real hub's users can trust.
