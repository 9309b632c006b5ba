//! The application: appends in transactions of all sizes, some of them slow, some rolled back.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};
use sqlx::postgres::PgConnection;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::account::Account;
use crate::databases::{self, LIMIT};

const WRITERS: u64 = 16;
/// Accounts per thousand events. By Zipf's law, a few have many events and most have few.
const ACCOUNTS_PER_THOUSAND: u64 = 40;
/// A writer that may append no more events still runs one transaction in this time.
const TRICKLE: Duration = Duration::from_millis(700);
/// The share of transactions that lock their streams in one order.
const ORDERLY: f64 = 0.98;
const CUSTOMERS: u32 = 300;
/// Fragile streams per thousand events.
const FRAGILE_PER_THOUSAND: u64 = 5;
/// The share of the events of a fragile stream that cannot be applied.
const POISON: f64 = 0.05;
/// Has more digits than a binary float keeps.
const LARGE_AMOUNT: &str = "9007199254740993.01";
/// The amount of an event of a fragile stream.
pub(crate) const LIGHT: &str = "1.50";
/// The amount of a poison event: too large for its column.
pub(crate) const TOO_LARGE: &str = "1000.00";

/// Running writers.
pub(crate) struct Writers {
    pub(crate) account: Arc<Account>,
    /// The number of events up to which the writers may append.
    allowed: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Writers {
    pub(crate) fn start(url: &str, seed: u64, events: u64) -> Self {
        let (account, allowed) = (Arc::<Account>::default(), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        let accounts = (events * ACCOUNTS_PER_THOUSAND / 1_000).max(50);
        let fragile = (events * FRAGILE_PER_THOUSAND / 1_000).max(20);
        for number in 0..WRITERS {
            #[expect(clippy::cast_precision_loss, reason = "as many accounts fit")]
            let activity = Zipf::new(accounts as f64, 1.1).expect("n is at least 1");
            let writer = Writer {
                url: url.to_owned(),
                random: ChaCha8Rng::seed_from_u64(seed ^ (number << 32)),
                activity,
                fragile,
                account: Arc::clone(&account),
                allowed: Arc::clone(&allowed),
            };
            tasks.spawn(writer.run());
        }
        Self { account, allowed, tasks }
    }

    /// Lets them append until there are this many events.
    pub(crate) fn allow(&self, events: u64) {
        self.allowed.fetch_max(events, Ordering::Relaxed);
    }

    /// Stops them after their transactions.
    pub(crate) async fn stop(&mut self) -> Arc<Account> {
        self.allowed.store(0, Ordering::Relaxed);
        sleep(2 * LIMIT).await;
        self.tasks.shutdown().await;
        Arc::clone(&self.account)
    }
}

struct Writer {
    url: String,
    random: ChaCha8Rng,
    activity: Zipf<f64>,
    /// The number of fragile streams.
    fragile: u64,
    account: Arc<Account>,
    allowed: Arc<AtomicU64>,
}

/// An append of some events to a stream.
struct Append {
    stream: String,
    ids: Vec<Uuid>,
    events: String,
}

impl Writer {
    async fn run(mut self) {
        let mut connection = None;
        loop {
            self.wait_for_turn().await;
            let open = match connection.take() {
                Some(open) => open,
                None => databases::postgres(&self.url).await,
            };
            connection = self.transaction(open).await;
        }
    }

    /// Waits until more events are allowed, but no longer than [`TRICKLE`] before the writers are stopped.
    async fn wait_for_turn(&self) {
        let begun = Instant::now();
        loop {
            let allowed = self.allowed.load(Ordering::Relaxed);
            let is_silent = begun.elapsed() > TRICKLE && allowed > 0;
            if self.account.appended() < allowed || is_silent {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs one transaction; returns the connection if it can be used again.
    async fn transaction(&mut self, mut connection: PgConnection) -> Option<PgConnection> {
        let mut appends: Vec<Append> =
            (0..self.random.random_range(1..=3)).map(|_| self.append()).collect();
        // A deadlock in PostgreSQL takes a second.
        if self.random.random_bool(ORDERLY) {
            appends.sort_by(|a, b| a.stream.cmp(&b.stream));
        }
        let ids: Vec<Uuid> = appends.iter().flat_map(|append| append.ids.clone()).collect();
        let hold = match self.random.random_range(0..1_000) {
            0 | 1 => self.random.random_range(500..3_000),
            2..=200 => self.random.random_range(1..50),
            _ => 0,
        };
        let begun = timeout(LIMIT, begin(&mut connection, &appends)).await;
        if !matches!(begun, Ok(Ok(()))) {
            // A transaction without a COMMIT is rolled back sooner or later.
            self.account.roll_back(&ids);
            return None;
        }
        if hold > 0 {
            sleep(Duration::from_millis(hold)).await;
        }
        if self.random.random_bool(0.1) {
            self.account.roll_back(&ids);
            let rolled_back = timeout(LIMIT, sqlx::raw_sql("ROLLBACK").execute(&mut connection));
            return matches!(rolled_back.await, Ok(Ok(_))).then_some(connection);
        }
        if let Ok(Ok(_)) = timeout(LIMIT, sqlx::raw_sql("COMMIT").execute(&mut connection)).await {
            self.account.commit(&ids);
            Some(connection)
        } else {
            self.account.lose(&ids);
            None
        }
    }

    fn append(&mut self) -> Append {
        let count = self.random.random_range(1..=3);
        let (stream, count) = match self.random.random_range(0..20) {
            0 | 1 => (format!("customer-{}", self.random.random_range(1..=CUSTOMERS)), 1),
            2 | 3 => (format!("order-{}", self.uuid()), 1),
            4 => (format!("fragile-{}", self.random.random_range(1..=self.fragile)), count),
            _ => (format!("account-{:.0}", self.activity.sample(&mut self.random)), count),
        };
        let (mut ids, mut events) = (Vec::new(), String::from("["));
        for number in 0..count {
            let id = self.uuid();
            ids.push(id);
            let separator = if number == 0 { "" } else { "," };
            let (event_type, data) = self.event(&stream);
            write!(
                events,
                r#"{separator}{{"event_id":"{id}","type":"{event_type}","data":{data}}}"#
            )
            .expect("text takes text");
        }
        events.push(']');
        Append { stream, ids, events }
    }

    fn event(&mut self, stream: &str) -> (&'static str, String) {
        if stream.starts_with("customer-") {
            let name = self.uuid().simple().to_string();
            return ("CustomerNamed", format!(r#"{{"name":"{name}"}}"#));
        }
        if stream.starts_with("order-") {
            let customer = self.random.random_range(1..=CUSTOMERS);
            return ("OrderPlaced", format!(r#"{{"customer_id":"customer-{customer}"}}"#));
        }
        if stream.starts_with("fragile-") {
            let amount = if self.random.random_bool(POISON) { TOO_LARGE } else { LIGHT };
            return ("Weighed", format!(r#"{{"amount":{amount}}}"#));
        }
        let length = match self.random.random_range(0..1_000) {
            0 => self.random.random_range(64_000..256_000),
            1..=9 => self.random.random_range(8_000..64_000),
            10..=99 => self.random.random_range(600..8_000),
            _ => self.random.random_range(20..500),
        };
        let amount = if self.random.random_bool(0.02) {
            LARGE_AMOUNT.to_owned()
        } else {
            let cents = self.random.random_range(0..1_000_000);
            format!("{}.{:02}", cents / 100, cents % 100)
        };
        let bucket = self.random.random_range(0..16);
        let note = "x".repeat(length);
        ("Moved", format!(r#"{{"bucket":"b{bucket:02}","amount":{amount},"note":"{note}"}}"#))
    }

    fn uuid(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.random.random()).into_uuid()
    }
}

async fn begin(connection: &mut PgConnection, appends: &[Append]) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
    for append in appends {
        append_to(connection, &append.stream, &append.events).await?;
    }
    Ok(())
}

/// Calls `append_to_stream`.
pub(crate) async fn append_to(
    connection: &mut PgConnection,
    stream: &str,
    events: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT append_to_stream($1, NULL, $2::jsonb)")
        .bind(stream)
        .bind(events)
        .execute(connection)
        .await
        .map(drop)
}
