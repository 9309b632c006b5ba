//! Named steps at which a test can kill the process.
//!
//! Only tests enable the feature `failpoints`. With it, the process aborts at the step that the environment
//! names: `FAILPOINTS="rebuild::swapped=return"`. `FAILPOINTS="replay::page-applied=2*off->return"` aborts when
//! the process reaches the step for the third time. The syntax is that of the crate `fail`.

/// The steps of a rebuild, in order.
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

/// Aborts the process at this step if the environment names it.
#[cfg(feature = "failpoints")]
macro_rules! failpoint {
    ($name:literal) => {
        fail::fail_point!($name, |_| crate::failpoints::die($name));
    };
}

/// Does nothing without the feature.
#[cfg(not(feature = "failpoints"))]
macro_rules! failpoint {
    ($name:literal) => {};
}

pub(crate) use failpoint;

/// Ends the process like SIGKILL: nothing is flushed, closed or rolled back.
#[cfg(feature = "failpoints")]
pub(crate) fn die(name: &str) -> ! {
    daemon::output::say(&format!("failpoint: {name}"));
    std::process::abort()
}

/// Reads `FAILPOINTS` from the environment.
#[cfg(feature = "failpoints")]
pub(crate) fn setup() {
    // Leaked: dropping the scenario would clear the settings.
    Box::leak(Box::new(fail::FailScenario::setup()));
}
