//! The schedule of the faults, which depends only on a seed.

use std::time::Duration;

use harness::Side;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::faults::{Fault, Kind, Server};

/// After this many faults, every kind was injected at every server.
pub(crate) const ROUND: usize = 60;

/// Draws faults in rounds: each round has every kind at every server once, in random order. The first fault
/// gets the number `first`.
pub(crate) fn draw(seed: u64, first: usize, count: usize, kinds: &[Kind]) -> Vec<Fault> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let all: Vec<(Kind, Option<Server>)> = kinds
        .iter()
        .flat_map(|kind| match kind.servers() {
            [] => vec![(*kind, None)],
            servers => servers.iter().map(|server| (*kind, Some(*server))).collect(),
        })
        .collect();
    let mut faults = Vec::with_capacity(count);
    while faults.len() < count {
        let mut round = all.clone();
        round.shuffle(&mut random);
        for (kind, server) in round {
            let number = first + faults.len();
            faults.push(Fault { number, kind, server, ..draw_one(kind, &mut random) });
        }
    }
    faults.truncate(count);
    faults
}

fn draw_one(kind: Kind, random: &mut ChaCha8Rng) -> Fault {
    let lasts = match kind {
        // Usually longer than a silent relay may keep its claim.
        Kind::FreezeRelay => 5_000..=9_000,
        // Half of them longer than any daemon waits for an answer.
        Kind::BlackHole | Kind::BlackHoleOneWay | Kind::FreezeServer | Kind::FreezeProjector
            if random.random_bool(0.5) =>
        {
            8_000..=25_000
        }
        Kind::RefuseMessages | Kind::RemoveBindings => 1_000..=5_000,
        // Usually longer than a batch waits for a lock, and than it then waits for one event.
        Kind::HoldRows => 1_000..=9_000,
        // A fast batch may take all its locks between two of ours, so there are several attempts.
        Kind::Deadlock => 2_000..=5_000,
        // Longer than a relay waits for confirms.
        Kind::MemoryAlarm | Kind::DiskAlarm => 5_000..=8_000,
        _ => 100..=3_000,
    };
    let pause = match kind {
        // Another fault begins at once, so that it meets the swap of the tables.
        kind if kind.is_rebuild() => 0..=0,
        _ => 0..=1_500,
    };
    Fault {
        number: 0,
        kind,
        server: None,
        which: random.random_range(0..1_000),
        everybody: random.random_bool(0.25),
        side: if random.random_bool(0.5) { Side::Client } else { Side::Server },
        lasts: Duration::from_millis(random.random_range(lasts)),
        pause: Duration::from_millis(random.random_range(pause)),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn all() -> &'static [Kind] {
        Kind::value_variants()
    }

    #[test]
    fn a_seed_gives_the_same_schedule_again_and_another_seed_another() {
        assert_eq!(draw(7, 1, 200, all()), draw(7, 1, 200, all()));
        assert_ne!(draw(7, 1, 200, all()), draw(8, 1, 200, all()));
    }

    #[test]
    fn every_kind_is_injected_at_every_server() {
        let faults = draw(1, 1, ROUND, all());
        for kind in all() {
            assert!(faults.iter().any(|fault| fault.kind == *kind), "{kind:?}");
            for server in Server::ALL {
                let matches = |fault: &&Fault| fault.kind == *kind && fault.server == Some(server);
                let expected = kind.servers().contains(&server);
                assert_eq!(faults.iter().any(|fault| matches(&fault)), expected, "{kind:?}");
            }
        }
    }

    #[test]
    fn only_the_requested_kinds_are_drawn() {
        let faults = draw(1, 1, 10, &[Kind::KillRelay]);
        assert!(faults.iter().all(|fault| fault.kind == Kind::KillRelay));
        assert_eq!(faults.len(), 10);
    }
}
