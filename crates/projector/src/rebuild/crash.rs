//! Places at which a test lets a rebuild die.
//!
//! Only in builds with debug assertions: with `PROJECTOR_CRASH_AT=7` the process aborts at the seventh
//! place that it comes to, or by name at the first of that name. A test does so for each number until a
//! rebuild ends by itself.

#[cfg(debug_assertions)]
pub(super) fn point(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSED: AtomicU32 = AtomicU32::new(1);

    let wanted = std::env::var("PROJECTOR_CRASH_AT").unwrap_or_default();
    let number = PASSED.fetch_add(1, Ordering::Relaxed).to_string();
    if wanted == name || wanted == number {
        crate::commands::say(&format!("crash: {name}"));
        std::process::abort();
    }
}

#[cfg(not(debug_assertions))]
pub(super) fn point(_name: &str) {}
