//! The meter that the loops share: whoever notices something notes it here, whoever decides or shows reads it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::ownership::vitals::Vitals;

/// What was measured on this device. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Mutex<Vitals>>);

impl Meter {
    /// Notes something.
    pub fn note(&self, note: impl FnOnce(&mut Vitals)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What was measured so far.
    pub fn read(&self) -> Vitals {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
