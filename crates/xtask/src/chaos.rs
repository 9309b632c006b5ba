//! Fault campaigns, on servers of their own.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::servers::Breakable;
use crate::workspace::{build, cargo, root, succeed, target};

/// Patches with bugs that the checker must find.
const BUGS: &str = "tests/chaos/bugs";
/// The table of their results.
const TABLE: &str = "tests/chaos/BUGS.md";

/// Break servers, networks and daemons; check that no event is lost, doubled or out of order.
///
/// The seed fixes the schedule of the faults. Their effects also depend on the timing of processes and
/// networks, so two runs with one seed differ.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask chaos                                     60 faults; about 5 minutes
  cargo xtask chaos --seed 7 --faults 20                a short campaign, with a fixed schedule
  cargo xtask chaos --only kill-relay,kill-projector    these faults only
  cargo xtask chaos --prove ignore-nacks                puts a bug into a copy; the checker must find it
  cargo xtask chaos -- --help                           the options of a campaign")]
pub(crate) struct Chaos {
    /// Build with optimisation, for long campaigns.
    #[arg(long)]
    release: bool,
    /// Prove the checker: put bugs into a copy of the daemons, one at a time; each must be found.
    #[arg(long)]
    prove: bool,
    /// Arguments of the campaign; with --prove, names of bugs (see tests/chaos/bugs).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Chaos {
    pub(crate) fn run(&self) -> Result<()> {
        let programs = build(self.release)?;
        let mut arguments = vec!["build", "--bin", "chaos", "-p", "integration-tests"];
        if self.release {
            arguments.push("--release");
        }
        succeed(&mut cargo(&arguments))?;
        let chaos = programs.join("chaos");
        if self.prove {
            return prove(&chaos, &self.arguments);
        }
        let breakable = Breakable::up()?;
        let mut campaign = Command::new(chaos);
        campaign.current_dir(root()).env("DAEMONS", programs).args(&self.arguments);
        succeed(campaign.envs(breakable.servers.variables()))
    }
}

/// A bug: a patch whose text explains it and names the campaign that finds it.
struct Bug {
    name: String,
    patch: PathBuf,
    what: String,
    campaign: Vec<String>,
    /// The checker's name for its effect: a campaign that fails for another reason has not found it.
    finds: String,
}

impl Bug {
    fn all(wanted: &[String]) -> Result<Vec<Self>> {
        let mut bugs = Vec::new();
        for entry in fs::read_dir(root().join(BUGS))? {
            let patch = entry?.path();
            let name = patch.file_stem().context("a name")?.to_string_lossy().into_owned();
            if wanted.is_empty() || wanted.contains(&name) {
                bugs.push(Self::read(name, patch)?);
            }
        }
        bugs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(bugs)
    }

    fn read(name: String, patch: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&patch)?;
        let what = text.lines().next().unwrap_or_default().to_owned();
        let named = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            found.with_context(|| format!("{name} has no line `{key}: …`"))
        };
        let campaign = named("chaos")?.split(' ').map(str::to_owned).collect();
        let finds = named("finds")?.to_owned();
        Ok(Self { name, patch, what, campaign, finds })
    }
}

/// Checks that the patches of all bugs still apply to the sources.
pub(crate) fn check_bugs() -> Result<()> {
    for bug in Bug::all(&[])? {
        let mut apply = Command::new("git");
        // Outside a repository, git applies a patch as well. In that of another project, it would skip it.
        apply.current_dir(root()).env("GIT_CEILING_DIRECTORIES", root().join(".."));
        apply.args(["apply", "--check"]).arg(&bug.patch);
        succeed(&mut apply)
            .with_context(|| format!("{} no longer applies to the sources", bug.name))?;
    }
    Ok(())
}

/// Runs each bug's campaign with daemons that have the bug. Each campaign must find its bug.
fn prove(chaos: &Path, wanted: &[String]) -> Result<()> {
    let folder = target().join("bugs");
    let mut missed = Vec::new();
    for bug in Bug::all(wanted)? {
        let tree = copy(&folder)?;
        let mut apply = Command::new("git");
        // Otherwise git would use the repository around the copy.
        apply.current_dir(&tree).env("GIT_CEILING_DIRECTORIES", &folder);
        succeed(apply.arg("apply").arg(&bug.patch))
            .with_context(|| format!("{} no longer applies to the sources", bug.name))?;
        let mut build = cargo(&["build", "--bins", "-p", "outbox-relay", "-p", "projector"]);
        build.current_dir(&tree).env("CARGO_TARGET_DIR", folder.join("target"));
        succeed(&mut build)?;
        println!("== {}: {}", bug.name, bug.what);
        let breakable = Breakable::up()?;
        let mut campaign = Command::new(chaos);
        campaign.current_dir(root()).env("DAEMONS", folder.join("target/debug"));
        campaign
            .args(["--seed", "1", "--patience", "25"])
            .args(&bug.campaign)
            .envs(breakable.servers.variables());
        let output = campaign.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let found = verdict(&text);
        println!("{}", if found.is_empty() { "NOT FOUND" } else { &found });
        if !found.split(", ").any(|wrong| wrong.split(' ').next() == Some(&bug.finds)) {
            fs::write(folder.join(format!("{}.log", bug.name)), text.as_bytes())?;
            missed.push(bug.name);
            continue;
        }
        let faults = bug.campaign.iter().skip_while(|word| *word != "--only").nth(1);
        let faults = faults.map(|kinds| kinds.replace(',', ", ")).unwrap_or_default();
        note(&bug.name, &format!("{} | {faults} | {found} |", bug.what))?;
    }
    if missed.is_empty() { Ok(()) } else { bail!("not found: {}", missed.join(", ")) }
}

/// Writes a row of the table; it replaces the bug's previous row.
fn note(name: &str, row: &str) -> Result<()> {
    let path = root().join(TABLE);
    let before = fs::read_to_string(&path).unwrap_or_default();
    let cells = |line: &str| {
        let (name, row) = line.strip_prefix("| ")?.split_once(" | ")?;
        let is_there = root().join(BUGS).join(name).with_extension("patch").exists();
        is_there.then(|| (name.to_owned(), row.to_owned()))
    };
    let mut rows: BTreeMap<String, String> = before.lines().filter_map(cells).collect();
    rows.insert(name.to_owned(), row.to_owned());
    let mut table = String::from(
        "# Bugs that the checker has found\n\n\
         Written by `cargo xtask chaos --prove`. It puts each bug into the daemons and runs a campaign of \
         the faults that expose it. The campaign must find the bug and name the error. The names of the \
         errors are explained in [findings.rs](findings.rs).\n\n\
         | bug | behaviour | faults | errors found |\n|---|---|---|---|\n",
    );
    for (name, row) in rows {
        writeln!(table, "| {name} | {row}")?;
    }
    Ok(fs::write(path, table)?)
}

/// The findings of a campaign, for example `Lost 3, Doubled 1`.
fn verdict(text: &str) -> String {
    let wrong = text.lines().skip_while(|line| *line != "WRONG:").skip(1);
    let short = |line: &str| Some(line.strip_prefix("- ")?.split(';').next()?.replace(": ", " "));
    wrong.filter_map(short).collect::<Vec<_>>().join(", ")
}

/// Copies the sources. Unchanged files keep their times, so that cargo rebuilds little.
fn copy(folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("tree");
    let list = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output()?;
    let files = String::from_utf8(list.stdout)?;
    for file in files.split_terminator('\0') {
        let (from, to) = (root().join(file), tree.join(file));
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        fs::create_dir_all(to.parent().context("a folder")?)?;
        fs::write(&to, bytes)?;
    }
    Ok(tree)
}
