//! Properties of every configuration, checked with the seeds and by `cargo xtask fuzz`.

use crate::{Servers, Settings};

/// Reads a configuration. [`daemon::fuzzing`] describes the input and the properties.
///
/// # Panics
///
/// When a property does not hold.
pub fn settings(input: &[u8]) {
    daemon::fuzzing::settings(input, "OUTBOX_RELAY", |reader| {
        Settings::read(reader, Servers { postgres: false, rabbitmq: true }).map(|(_, shown)| shown)
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/settings");
        let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
        assert!(!seeds.is_empty());
        for seed in seeds {
            let path = seed.unwrap().path();
            println!("{}", path.display());
            super::settings(&std::fs::read(path).unwrap());
        }
    }
}
