//! Operators' commands with files that change in between, against a model of them.
//!
//! A random sequence of commands, appends and deliveries runs on real servers. After each step, the tables in
//! service, their bookkeeping and the definition in service must be those of the model: a fold of the history
//! with the definition that each event met. The instances keep what they know of the tables between the steps,
//! as daemons do.

mod case;
mod lab;
mod model;

use std::env;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use self::case::Case;
use self::lab::Lab;

/// The most sequences in CI. `PROPTEST_CASES` sets another number.
const CASES: u32 = 24;
const STREAMS: usize = 3;
/// Definitions of the projection.
const FILES: usize = 4;
/// The definition with another `tables.sql`.
const WIDE: usize = 3;
/// The value of an event without one, for the only definition that accepts it.
const ABSENT: i64 = 1_000;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Append an event; one in some has no value.
    Append {
        stream: usize,
        poison: bool,
    },
    /// An instance with these files applies what it finds.
    Deliver {
        files: usize,
    },
    /// An instance with these files starts again.
    Restart {
        files: usize,
    },
    Rebuild {
        files: usize,
        allow_parked: bool,
    },
    RollBack {
        files: usize,
    },
    CleanUp {
        files: usize,
    },
    Repair {
        files: usize,
    },
    Retry {
        files: usize,
    },
    Skip {
        files: usize,
        stream: usize,
    },
    Fold {
        files: usize,
        stream: usize,
    },
    Pause,
    Resume {
        files: usize,
    },
    Adopt {
        files: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (files, stream) = (0..FILES, 0..STREAMS);
    let step = prop_oneof![
        8 => (stream.clone(), prop::bool::weighted(0.2))
            .prop_map(|(stream, poison)| Step::Append { stream, poison }),
        8 => files.clone().prop_map(|files| Step::Deliver { files }),
        1 => files.clone().prop_map(|files| Step::Restart { files }),
        3 => (files.clone(), any::<bool>())
            .prop_map(|(files, allow_parked)| Step::Rebuild { files, allow_parked }),
        2 => files.clone().prop_map(|files| Step::RollBack { files }),
        1 => files.clone().prop_map(|files| Step::CleanUp { files }),
        2 => files.clone().prop_map(|files| Step::Repair { files }),
        2 => files.clone().prop_map(|files| Step::Retry { files }),
        2 => (files.clone(), stream.clone())
            .prop_map(|(files, stream)| Step::Skip { files, stream }),
        1 => (files.clone(), stream).prop_map(|(files, stream)| Step::Fold { files, stream }),
        1 => Just(Step::Pause),
        2 => files.clone().prop_map(|files| Step::Resume { files }),
        2 => files.prop_map(|files| Step::Adopt { files }),
    ];
    prop::collection::vec(step, 4..24)
}

/// Any sequence of commands gives what a fold of the history gives, with the definition that each event met.
/// The sequences are the same in each run unless `PROPTEST_CASES` asks for a number of new ones. `MODEL_SEED`
/// repeats such a run.
#[test]
fn commands_with_changing_files_give_a_fold_of_the_history() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let more = number("PROPTEST_CASES").map(|cases| u32::try_from(cases).unwrap());
    let cases = more.unwrap_or(CASES);
    let seed = number("MODEL_SEED").unwrap_or_else(|| more.map_or(1, |_| rand::random()));
    println!("MODEL_SEED={seed} PROPTEST_CASES={cases}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lab = std::cell::RefCell::new(runtime.block_on(Lab::create()));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let result = TestRunner::new_with_rng(config, rng).run(&steps(), |steps| {
        let mut lab = lab.borrow_mut();
        let ran = runtime.block_on(async {
            let mut case = Case::begin(&mut lab).await;
            Box::pin(case.run(&steps)).await
        });
        ran.map_err(TestCaseError::fail)
    });
    runtime.block_on(lab.into_inner().drop());
    if let Err(error) = result {
        panic!("MODEL_SEED={seed}: {error}");
    }
}
