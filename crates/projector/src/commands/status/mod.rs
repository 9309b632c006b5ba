//! `projector status`.

mod causes;
mod facts;
mod found;
mod text;

use clap::Args;
use daemon::cause::State;
use daemon::output::Format;
use daemon::{Exit, Failure};
use serde::Serialize;

use self::causes::{Reason, causes};
use self::facts::gather;
use self::found::Facts;
use super::models;
use crate::Settings;

#[derive(Args)]
#[command(after_help = "Example:\n  projector status order_summary --json")]
pub(crate) struct Status {
    /// The projections. Default: all configured ones.
    projections: Vec<String>,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Report {
    state: State,
    causes: Vec<Reason>,
    #[serde(flatten)]
    facts: Facts,
}

/// Prints the state of projections. The exit code says whether everything works. A server that does not answer
/// is a cause, not a failure of the command.
pub(crate) async fn status(settings: &Settings, arguments: &Status) -> Result<Exit, Failure> {
    let Status { projections: names, format } = arguments;
    let models = models(settings, names)?;
    let facts = Box::pin(gather(settings, &models)).await?;
    let causes = causes(&facts);
    let state = causes.first().map_or(State::Ok, |reason| reason.cause.state);
    format.print(&Report { state, causes, facts }, text::of)?;
    Ok(state.exit())
}
