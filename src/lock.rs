//! Locks that are taken whoever panicked while holding them: what they guard is whole after each statement.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes the lock, poisoned or not.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
