//! Alarms that make the whole broker refuse messages.

use std::env;
use std::ffi::OsString;
use std::process::{Command, Stdio};

/// A memory alarm. Dropping it clears the alarm.
///
/// The alarm blocks all publishers of the broker, so a test that raises it runs alone.
pub struct Alarm {
    rabbitmqctl: OsString,
}

impl Alarm {
    /// Raises the alarm, if the environment variable `RABBITMQCTL` names the program.
    ///
    /// # Panics
    ///
    /// When `rabbitmqctl` fails.
    pub fn raise() -> Option<Self> {
        let alarm = Self { rabbitmqctl: env::var_os("RABBITMQCTL")? };
        alarm.control(&["set_vm_memory_high_watermark", "0.00001"]);
        Some(alarm)
    }

    /// Restarts the broker's application. Every connection is lost.
    ///
    /// # Panics
    ///
    /// When `rabbitmqctl` fails.
    pub fn restart_broker(&self) {
        self.control(&["stop_app"]);
        self.control(&["start_app"]);
    }

    fn control(&self, arguments: &[&str]) {
        let status = Command::new(&self.rabbitmqctl)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "rabbitmqctl {arguments:?}");
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.control(&["set_vm_memory_high_watermark", "0.6"]);
    }
}
