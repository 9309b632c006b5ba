//! The daemons, each with its own proxies to the servers.

use std::path::Path;
use std::time::Duration;

use harness::{Daemon, Program, Proxy, Stack};
use tokio::sync::Mutex;
use tokio::time::timeout;
use url::Url;

use crate::Arguments;
use crate::faults::Server;

const PAGE_LIMIT: Duration = Duration::from_millis(500);
/// The MySQL user of the daemons only.
pub(crate) const USER: &str = "chaos";
const PROJECTIONS: &str = "tests/chaos/projections";
/// The names of the projections.
pub(crate) const NAMES: [&str; 5] = ["ledger", "chain", "counter", "contacts", FRAGILE];
/// The projection with events that cannot be applied.
pub(crate) const FRAGILE: &str = "fragile";

/// A daemon and its proxies to the servers.
pub(crate) struct Slot {
    pub(crate) name: String,
    program: Program,
    daemon: Mutex<Option<Daemon>>,
    ways: Vec<(Server, Proxy)>,
}

/// All daemons.
pub(crate) struct Fleet {
    pub(crate) slots: Vec<Slot>,
    relays: usize,
}

impl Fleet {
    pub(crate) async fn start(stack: &Stack, arguments: &Arguments) -> Self {
        let user = format!("CREATE USER IF NOT EXISTS {USER}; GRANT ALL ON *.* TO {USER}");
        let user = sqlx::raw_sql(sqlx::AssertSqlSafe(user));
        user.execute(&mut stack.mysql().await).await.expect("a user without a password");
        let mut slots = Vec::new();
        for number in 1..=arguments.relays() {
            slots.push(Slot::relay(stack, number).await);
        }
        for number in 1..=arguments.projectors() {
            slots.push(Slot::projector(stack, number, arguments.no_sweep).await);
        }
        for slot in &slots {
            slot.start().await;
        }
        Self { slots, relays: arguments.relays() }
    }

    /// The slots of the relays.
    pub(crate) fn relays(&self) -> std::ops::Range<usize> {
        0..self.relays
    }

    /// The slots of the projectors.
    pub(crate) fn projectors(&self) -> std::ops::Range<usize> {
        self.relays..self.slots.len()
    }

    /// The slots of the daemons that use a server.
    pub(crate) fn users(&self, server: Server) -> std::ops::Range<usize> {
        if server == Server::MySql { self.projectors() } else { 0..self.slots.len() }
    }

    /// The projection that a rebuild is for.
    pub(crate) fn rebuilt(which: usize) -> &'static str {
        NAMES[which % NAMES.len()]
    }

    /// A rebuild that uses the proxies of one of the projectors.
    pub(crate) fn rebuild(&self, which: usize) -> Program {
        let projectors = self.projectors();
        let slot = &self.slots[projectors.start + which % projectors.len()];
        let name = Self::rebuilt(which);
        let parked = (name == FRAGILE).then_some("--allow-parked");
        slot.program.clone().args(["rebuild", name]).args(parked)
    }

    /// The number of transactions that committed without the daemon receiving the answer.
    pub(crate) fn unknown_commits(&self) -> usize {
        let ways = self.slots.iter().flat_map(|slot| &slot.ways);
        ways.map(|(_, proxy)| proxy.unknown_commits()).sum()
    }
}

impl Slot {
    async fn relay(stack: &Stack, number: usize) -> Self {
        let mut ways = Ways::default();
        let program = stack
            .relay()
            .env("EVENT_STORE_URL", &ways.to(Server::PostgreSql, &stack.postgres_url).await)
            .env("AMQP_URL", &ways.to(Server::RabbitMq, &stack.amqp_url).await)
            .env("OUTBOX_RELAY__RELAY__CONFIRM_TIMEOUT", "4s")
            .env("OUTBOX_RELAY__RELAY__CLAIM_TIMEOUT", "6s");
        Self::of(format!("relay-{number}"), program, ways)
    }

    async fn projector(stack: &Stack, number: usize, no_sweep: bool) -> Self {
        let mut ways = Ways::default();
        // A proxy cannot find a COMMIT in encrypted bytes. Without encryption, MySQL accepts the password of
        // a user only after an encrypted login, so this user has none.
        let mut readable = Url::parse(&stack.mysql_url).expect("a URL");
        readable.set_username(USER).expect("a user");
        readable.set_password(None).expect("no password");
        readable.set_query(Some("ssl-mode=DISABLED"));
        let mut program = stack
            .projector(Path::new(PROJECTIONS))
            .env("EVENT_STORE_URL", &ways.to(Server::PostgreSql, &stack.postgres_url).await)
            .env("AMQP_URL", &ways.to(Server::RabbitMq, &stack.amqp_url).await)
            .env("READ_MODEL_URL", &ways.to(Server::MySql, readable.as_str()).await)
            // Poison events park many streams, and must not pause the projection.
            .env("PROJECTOR__PROJECTOR__STORM_STREAMS", "1000000")
            .env("PROJECTOR__PROJECTOR__STORM_PERCENT", "100");
        if no_sweep {
            program = program.env("PROJECTOR__PROJECTOR__SWEEP_INTERVAL", "1h");
        }
        Self::of(format!("projector-{number}"), program, ways)
    }

    fn of(name: String, program: Program, Ways(ways): Ways) -> Self {
        Self { name, program, daemon: Mutex::default(), ways }
    }

    /// Starts the daemon in place of the previous one.
    pub(crate) async fn start(&self) {
        *self.daemon.lock().await = Some(self.program.start());
    }

    /// Calls `act` with the daemon, if it runs.
    pub(crate) async fn with<T>(&self, act: impl AsyncFnOnce(&mut Daemon) -> T) -> Option<T> {
        let mut daemon = self.daemon.lock().await;
        let daemon = daemon.as_mut()?;
        daemon.running()?;
        Some(act(daemon).await)
    }

    /// Restarts the daemon if it has ended by itself; returns whether it had.
    pub(crate) async fn revive(&self) -> bool {
        let mut slot = self.daemon.lock().await;
        let ended = slot.as_mut().is_some_and(|daemon| daemon.running().is_none());
        if ended {
            *slot = Some(self.program.start());
        }
        ended
    }

    /// A page of the daemon, unless it is frozen.
    pub(crate) async fn page(&self, path: &str) -> Option<String> {
        let daemon = self.daemon.try_lock().ok()?;
        let page = timeout(PAGE_LIMIT, daemon.as_ref()?.get(path)).await.ok()??;
        Some(page.1)
    }

    /// The failing components with their reasons; `None` if the daemon is ready.
    pub(crate) async fn unready(&self) -> Option<String> {
        let daemon = self.daemon.lock().await;
        match timeout(PAGE_LIMIT, daemon.as_ref()?.get("/readyz")).await {
            Ok(Some((200, _))) => None,
            Ok(Some((_, page))) => Some(failing(&page)),
            _ => Some("no answer".to_owned()),
        }
    }

    /// The proxy to a server.
    pub(crate) fn way(&self, server: Server) -> Option<&Proxy> {
        self.ways.iter().find(|(to, _)| *to == server).map(|(_, proxy)| proxy)
    }
}

/// The failing components of a `/readyz` page with their reasons.
fn failing(page: &str) -> String {
    let page: serde_json::Value = serde_json::from_str(page).unwrap_or_default();
    let components = page["components"].as_object().into_iter().flatten();
    let failing = components.filter(|(_, state)| state["ok"] != true);
    let reasons: Vec<String> =
        failing.map(|(name, state)| format!("{name}: {}", state["reason"])).collect();
    reasons.join(", ")
}

#[derive(Default)]
struct Ways(Vec<(Server, Proxy)>);

impl Ways {
    /// A URL that leads to a server through a proxy.
    async fn to(&mut self, server: Server, url: &str) -> String {
        let (proxy, through) = Proxy::before(url).await;
        self.0.push((server, proxy));
        through
    }
}
