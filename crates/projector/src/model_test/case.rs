//! One sequence of steps on the servers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use daemon::Failure;
use daemon::output::Format;
use domain_events::{StoredEvent, StreamId, StreamRange, StreamVersion};
use read_model::{ApplyError, Breaker, ReadModel, RebuildOptions, Registry, Service, apply, load};
use serde_json::json;
use sqlx::AssertSqlSafe;

use super::lab::Lab;
use super::model::{Model, Tables};
use super::{ABSENT, FILES, STREAMS, Step, WIDE};
use crate::Settings;
use crate::commands::{Parked, adopt, cleanup, pause, rebuilder, resume, roll_back};

fn write(folder: &Path, name: &str, files: usize) {
    let directory = folder.join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("projection.toml"), format!("categories = [\"{name}\"]\n")).unwrap();
    let column = if files == WIDE { ", more INT NULL" } else { "" };
    let tables = format!(
        "CREATE TABLE {name} (stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin
         PRIMARY KEY, steps BIGINT NOT NULL{column})"
    );
    fs::write(directory.join("tables.sql"), tables).unwrap();
    let value = [":data.one", ":data.ten", ":data.any", ":data.hundred"][files];
    let handler = format!(
        "INSERT INTO {name} (stream_id, steps) VALUES (:stream_id, {value})
         ON DUPLICATE KEY UPDATE steps = steps + {value}"
    );
    fs::write(directory.join("Counted.sql"), handler).unwrap();
}

/// One sequence: a projection of its own, an instance and a folder for each definition.
pub(super) struct Case<'l> {
    lab: &'l mut Lab,
    name: String,
    settings: Vec<Settings>,
    instances: Vec<ReadModel>,
    _folder: tempfile::TempDir,
}

impl<'l> Case<'l> {
    pub(super) async fn begin(lab: &'l mut Lab) -> Self {
        lab.cases += 1;
        let name = format!("m{}", lab.cases);
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Vec::new();
        for files in 0..FILES {
            let own = folder.path().join(files.to_string());
            write(&own, &name, files);
            settings.push(lab.settings(&own));
        }
        let instances: Vec<_> = settings.iter().map(instance).collect();
        let mut session = lab.session().await;
        let first = &instances[0];
        session.migrate_projection(&first.projection, &first.ledger).await.unwrap();
        session.close().await;
        Self { lab, name, settings, instances, _folder: folder }
    }

    fn stream(&self, stream: usize) -> String {
        format!("{}-{stream}", self.name)
    }

    /// Takes a step on the servers. Returns whether its command succeeds.
    async fn take(&mut self, step: Step, model: &Model) -> bool {
        let name = self.name.clone();
        let done: Result<(), Failure> = match step {
            Step::Append { stream, .. } => {
                self.append(stream, model).await;
                Ok(())
            }
            Step::Deliver { files } => {
                self.deliver(files).await;
                Ok(())
            }
            Step::Restart { files } => {
                self.instances[files] = instance(&self.settings[files]);
                Ok(())
            }
            Step::Rebuild { files, allow_parked } => {
                let options = RebuildOptions { allow_parked, ..RebuildOptions::default() };
                self.rebuilder(files).await.rebuild(options, false).await.map_err(Into::into)
            }
            Step::RollBack { files } => roll_back(&self.settings[files], &name).await,
            Step::CleanUp { files } => cleanup(&self.settings[files], &name).await,
            Step::Repair { files } => {
                let repaired = self.rebuilder(files).await.verify(None, true).await;
                repaired.map(drop).map_err(Into::into)
            }
            Step::Retry { files } => {
                let (streams, error, format) = (Vec::new(), None, Format::default());
                let retry = Parked::Retry { projection: name, streams, all: true, error, format };
                retry.run(&self.settings[files]).await
            }
            Step::Skip { files, stream } => {
                let (stream, reason) = (self.stream(stream), "a test".to_owned());
                let format = Format::default();
                Parked::Skip { projection: name, stream, reason, format }
                    .run(&self.settings[files])
                    .await
            }
            Step::Fold { files, stream } => {
                let streams = [StreamId::new(self.stream(stream)).unwrap()];
                let folded = self.rebuilder(files).await.fold_in_place(&streams, |_| {}).await;
                folded.map(drop).map_err(Into::into)
            }
            Step::Pause => pause(&self.settings[0], &name, "a test").await,
            Step::Resume { files } => resume(&self.settings[files], &name).await,
            Step::Adopt { files } => adopt(&self.settings[files], &name).await,
        };
        if let Err(failure) = &done {
            println!("{step:?}: {}", failure.error);
        }
        done.is_ok()
    }

    async fn rebuilder(&self, files: usize) -> crate::rebuild::Rebuilder {
        rebuilder(&self.settings[files], &self.name, Format { json: true }).await.unwrap()
    }

    async fn append(&mut self, stream: usize, model: &Model) {
        let version = model.history[stream].len();
        let data = match model.history[stream][version - 1] {
            Some(n) => json!({ "one": n, "ten": 10 * n, "any": n, "hundred": 100 * n }),
            None => json!({ "any": ABSENT }),
        };
        sqlx::query(
            "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
             VALUES (gen_random_uuid(), $1, $2, 'Counted', $3::jsonb)",
        )
        .bind(self.stream(stream))
        .bind(i64::try_from(version).unwrap())
        .bind(data.to_string())
        .execute(&mut self.lab.postgres)
        .await
        .unwrap();
    }

    /// What a daemon does: it applies events with what it knows, and enters service anew when that is refused.
    async fn deliver(&mut self, files: usize) {
        let (model, mut session) = (&self.instances[files], self.lab.session().await);
        let mut store = self.lab.store().await;
        let wanted: Vec<_> = (0..STREAMS).map(|stream| self.range(stream)).collect();
        let events: Vec<StoredEvent> = store.read_streams(&wanted, 500).await.unwrap();
        store.close().await;
        let events: Vec<&StoredEvent> = events.iter().collect();
        for _ in 0..3 {
            match apply(&mut session, model, &events, Breaker::NONE).await {
                Ok(_) | Err(ApplyError::Paused { .. }) => break,
                Err(ApplyError::Replaced) => {
                    let (ledger, projection) = (&model.ledger, &model.projection);
                    let served = session.put_in_service(ledger, projection, None).await.unwrap();
                    model.prepare(&mut session).await.unwrap();
                    if !matches!(served, Service::InService | Service::New) {
                        break;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        session.close().await;
    }

    fn range(&self, stream: usize) -> StreamRange {
        StreamRange {
            stream_id: StreamId::new(self.stream(stream)).unwrap(),
            from: StreamVersion::FIRST,
            to: StreamVersion::LAST,
        }
    }

    /// The tables in service, and the definition in service.
    async fn found(&mut self) -> (Tables, usize) {
        let name = &self.name;
        let rows = format!("SELECT stream_id, steps FROM {name}");
        let rows: Vec<(String, i64)> =
            sqlx::query_as(AssertSqlSafe(rows)).fetch_all(&mut self.lab.mysql).await.unwrap();
        let rows: BTreeMap<_, _> = rows.into_iter().collect();
        let heads = format!("SELECT stream_id, version, parked FROM {name}__streams");
        let heads: Vec<(String, u64, bool)> =
            sqlx::query_as(AssertSqlSafe(heads)).fetch_all(&mut self.lab.mysql).await.unwrap();
        let mut tables = Tables::default();
        for (stream, one) in tables.0.iter_mut().enumerate() {
            let stream = format!("{name}-{stream}");
            one.steps = rows.get(&stream).copied();
            if let Some((_, version, is_parked)) = heads.iter().find(|head| head.0 == stream) {
                one.version = usize::try_from(*version).unwrap();
                one.is_parked = *is_parked;
            }
        }
        let read = "SELECT definition_hash FROM projector_projections WHERE name = ?";
        let hash: String =
            sqlx::query_scalar(read).bind(name).fetch_one(&mut self.lab.mysql).await.unwrap();
        let hashes = self.instances.iter().map(|model| &model.projection.definition_hash);
        let served = hashes.into_iter().position(|known| *known == hash).unwrap();
        (tables, served)
    }

    pub(super) async fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        let mut model = Model::new();
        for (number, step) in steps.iter().enumerate() {
            let wanted = model.take(*step);
            let done = Box::pin(self.take(*step, &model)).await;
            let found = self.found().await;
            if (done, &found) != (wanted, &(model.live.clone(), model.served)) {
                return Err(format!(
                    "step {number}, {step:?}: {done} with {found:?}\nwanted: {wanted} with {:?}\nof {model:#?}",
                    (&model.live, model.served)
                ));
            }
        }
        Ok(())
    }
}

fn instance(settings: &Settings) -> ReadModel {
    let definition = load(&settings.projections_dir, &[], &Registry::default()).unwrap().remove(0);
    ReadModel::new(definition)
}
