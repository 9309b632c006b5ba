//! Places at which a test lets the process die.
//!
//! With the feature `failpoints`, which only the tests use, the process aborts at the place that the
//! environment names: `FAILPOINTS="rebuild::swapped=return"`. For the third time that it gets there:
//! `FAILPOINTS="replay::page-applied=2*off->return"`. The syntax is that of the crate `fail`.

/// Each place, in the order in which a rebuild gets there.
#[doc(hidden)]
pub const ALL: [&str; 20] = [
    "rebuild::planned",
    "rebuild::leftovers-dropped",
    "rebuild::building",
    "rebuild::tables-made",
    "replay::begun",
    "replay::page-applied",
    "replay::checkpoint-moved",
    "replay::ended",
    "rebuild::catching-up",
    "rebuild::cutting-over",
    "rebuild::place-freed",
    "rebuild::swap-announced",
    "rebuild::before-gate",
    "rebuild::gate-closed",
    "rebuild::caught-up-behind-gate",
    "rebuild::swapped",
    "rebuild::swap-recorded",
    "rebuild::gate-open",
    "rebuild::before-last-catch-up",
    "rebuild::done",
];

/// Dies here, if the environment says so.
#[cfg(feature = "failpoints")]
macro_rules! failpoint {
    ($name:literal) => {
        fail::fail_point!($name, |_| crate::failpoints::die($name));
    };
}

/// Nothing, but in tests.
#[cfg(not(feature = "failpoints"))]
macro_rules! failpoint {
    ($name:literal) => {};
}

pub(crate) use failpoint;

/// As if by SIGKILL: nothing is flushed, closed or rolled back.
#[cfg(feature = "failpoints")]
pub(crate) fn die(name: &str) -> ! {
    crate::output::say(&format!("failpoint: {name}"));
    std::process::abort()
}

/// Reads what the environment says.
#[cfg(feature = "failpoints")]
pub(crate) fn setup() {
    // Its end would forget the settings.
    Box::leak(Box::new(fail::FailScenario::setup()));
}
