//! Properties that hold for every configuration, projection and parameter. Tests check them with the seeds, and
//! `cargo xtask fuzz` with random input.

use crate::{Servers, Settings};

pub use projection::fuzzing::parameter;
pub use read_model::fuzzing::projection;

/// Reads a configuration. [`daemon::fuzzing`] describes the input and the properties.
///
/// # Panics
///
/// When a property does not hold.
pub fn settings(input: &[u8]) {
    daemon::fuzzing::settings(input, "PROJECTOR", |reader| {
        Settings::read(reader, Servers { sources: false, mysql: true }).map(|(_, shown)| shown)
    });
}

#[cfg(test)]
mod tests {
    fn run_seeds(target: &str, run: fn(&[u8])) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/");
        let seeds: Vec<_> = std::fs::read_dir(format!("{folder}{target}")).unwrap().collect();
        assert!(!seeds.is_empty());
        for seed in seeds {
            let path = seed.unwrap().path();
            println!("{}", path.display());
            run(&std::fs::read(path).unwrap());
        }
    }

    #[test]
    fn projection_seeds() {
        run_seeds("projection", super::projection);
    }

    #[test]
    fn parameter_seeds() {
        run_seeds("parameter", super::parameter);
    }

    #[test]
    fn settings_seeds() {
        run_seeds("settings", super::settings);
    }
}
