//! Looks, before a rebuild or a rollback begins, at what people have attached to the live tables.

use read_model::Attached;

use super::{Error, Owned};

impl Owned<'_> {
    /// Fails if a swap of the tables would fail, or move something out of service that others use.
    pub(super) async fn require_swappable(&mut self) -> Result<(), Error> {
        let live = &self.rebuilder.databases.live;
        let found = self.session.attached(live, &self.tables).await?;
        self.refuse(&found, "drop it, and add it again afterwards if it is still needed")
    }

    /// Fails if the live tables have columns, indexes or partitions that `tables.sql` does not have, unless the
    /// rebuild may drop them. If `tables.sql` has changed, says what goes: nobody can tell what was added by hand.
    pub(super) async fn require_no_extras(&mut self, may_drop: bool) -> Result<(), Error> {
        let rebuilder = self.rebuilder;
        let (verify, live) = (&rebuilder.databases.verify, &rebuilder.databases.live);
        self.session.make_database(verify).await?;
        self.session.drop_tables(verify, &self.tables).await?;
        rebuilder.target(&mut self.session, verify).await?.close().await;
        let own: Vec<String> =
            self.live.projection.tables.iter().map(|table| table.name.clone()).collect();
        let found = self.session.extras([live, verify], &own).await?;
        self.session.drop_tables(verify, &self.tables).await?;
        if may_drop || !self.session.has_same_tables(&self.live.projection).await? {
            for extra in &found {
                rebuilder.report.say(&format!("{extra}, and the new table will not have it"));
            }
            return Ok(());
        }
        self.refuse(&found, "add it to tables.sql, or give it up with --drop-extras")
    }

    fn refuse(&self, found: &[Attached], remedy: &'static str) -> Result<(), Error> {
        if found.is_empty() {
            return Ok(());
        }
        let projection = self.live.name().to_owned();
        let found = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(Error::Attached { projection, found, remedy })
    }
}
