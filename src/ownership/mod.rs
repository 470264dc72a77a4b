//! Who may act: the safety argument in pure functions.
