//! Configuration in layers, read key by key.
//!
//! Later layers win: the built-in defaults, a TOML file, environment variables that other tools use
//! too (`AMQP_URL`), environment variables with the daemon's prefix.
//!
//! **Invariants:**
//! - All errors are reported at once, each with the origin of the value: a file or a variable.
//! - An unknown key is an error.
//! - A value is never converted: `7.9` and `no` are not integers.
//! - No error and no output contains a secret.

mod layers;
mod reader;

pub use layers::Layers;
pub use reader::{MYSQL, POSTGRESQL, RABBITMQ, Reader, Shown};

/// All errors of a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{} in the configuration:\n  - {}", count(.0.len()), .0.join("\n  - "))]
pub struct Errors(pub Vec<String>);

fn count(errors: usize) -> String {
    if errors == 1 { "1 error".to_owned() } else { format!("{errors} errors") }
}

#[cfg(test)]
mod tests;
