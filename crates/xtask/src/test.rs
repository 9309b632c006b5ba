//! All tests, on real servers.

use std::process::{Command, Stdio};

use anyhow::Result;
use clap::Args;

use crate::servers::Borrowed;
use crate::workspace::{build_for_tests, cargo, root, succeed};

/// Real events that some tests use when they are there.
const INCIDENTS: &str = "../shared/data/incidents";

/// Run all tests on real servers.
#[derive(Args)]
pub(crate) struct Test {
    /// For the test runner, for example the name of a test.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Test {
    pub(crate) fn run(&self) -> Result<()> {
        let borrowed = Borrowed::up()?;
        let programs = build_for_tests()?;
        let has_nextest = Command::new("cargo")
            .args(["nextest", "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        let runner: &[&str] = if has_nextest { &["nextest", "run"] } else { &["test"] };
        let run = |more: &[&str]| {
            let mut tests = cargo(runner);
            tests.arg("--workspace").args(&self.arguments).args(more);
            tests.envs(borrowed.servers.variables()).env("DAEMONS", &programs);
            succeed(&mut tests)
        };
        run(&[])?;
        // Those that disturb every user of a server run alone.
        let alone: &[&str] = if has_nextest {
            &["--run-ignored", "only", "--test-threads", "1", "--no-tests", "pass"]
        } else {
            &["--", "--ignored", "--test-threads", "1"]
        };
        if borrowed.servers.are_ours() {
            run(alone)?;
        } else {
            println!("skipped: the tests that disturb a whole server, because these are not ours");
        }
        // The runner hides what a passing test says.
        if !root().join(INCIDENTS).is_dir() {
            println!("skipped: the tests on real incidents, because {INCIDENTS} is not there");
        }
        Ok(())
    }
}
