//! All tests, on real servers.

use std::process::{Command, Stdio};

use anyhow::Result;
use clap::Args;

use crate::servers::{Borrowed, Oldest, Servers};
use crate::workspace::{build_for_tests, cargo, root, succeed};

/// Real events that some tests use if the folder exists.
const INCIDENTS: &str = "../shared/data/incidents";

/// Run all tests on real servers.
///
/// Starts PostgreSQL, RabbitMQ and MySQL unless they run, and stops the ones that it started.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask test                          all tests
  cargo xtask test parked                   the tests with `parked` in their names
  cargo xtask test --oldest                 all tests on the oldest supported servers
  cargo xtask test --oldest broker:: relay  some of them on the oldest supported servers")]
pub(crate) struct Test {
    /// Start the oldest supported versions of PostgreSQL, RabbitMQ and MySQL, and test on them.
    #[arg(long)]
    oldest: bool,
    /// Arguments of the test runner, for example the name of a test.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Test {
    pub(crate) fn run(&self) -> Result<()> {
        if self.oldest {
            let oldest = Oldest::up()?;
            oldest.servers.print_status();
            self.run_on(&oldest.servers)
        } else {
            let borrowed = Borrowed::up()?;
            self.run_on(&borrowed.servers)
        }
    }

    fn run_on(&self, servers: &Servers) -> Result<()> {
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
            tests.envs(servers.variables()).env("DAEMONS", &programs);
            succeed(&mut tests)
        };
        run(&[])?;
        // These tests disturb every user of a server, so they run alone.
        let alone: &[&str] = if has_nextest {
            &["--run-ignored", "only", "--test-threads", "1", "--no-tests", "pass"]
        } else {
            &["--", "--ignored", "--test-threads", "1"]
        };
        if servers.are_ours() {
            run(alone)?;
        } else {
            println!(
                "skipped: the tests that disturb a whole server, because others may use these"
            );
        }
        // The runner hides the output of a passing test.
        if !root().join(INCIDENTS).is_dir() {
            println!("skipped: the tests on real incidents, because {INCIDENTS} does not exist");
        }
        Ok(())
    }
}
