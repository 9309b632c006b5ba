//! Measures how long it takes until events flow again: appends some and waits for them.

use std::future::pending;
use std::time::{Duration, Instant};

use harness::Stack;
use sqlx::mysql::MySqlConnection;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::broker::Management;
use crate::databases::{self, LIMIT};
use crate::writers::{LIGHT, append_to};

/// After this time, the state of the events is printed.
const SLOW: Duration = Duration::from_secs(6);
/// Enough for most lanes of the relays and for all partitions.
const ACCOUNTS: i64 = 16;

/// Appends events for every projection and most lanes, and returns the time until all read models show all
/// of them, or `None` after the limit. Prints the state of the events if that takes long.
pub(crate) async fn recovery(
    stack: &Stack,
    limit: Duration,
    tell: impl Fn(&str),
) -> Option<Duration> {
    let begun = Instant::now();
    let probe = Probe::new();
    let shown = async {
        probe.append(&stack.postgres_url).await;
        probe.wait(&stack.mysql_url).await;
    };
    let diagnosis = async {
        sleep(SLOW).await;
        tell(&probe.progress(stack).await);
        pending::<()>().await;
    };
    tokio::select! {
        shown = timeout(limit, shown) => shown.ok().map(|()| begun.elapsed()),
        () = diagnosis => None,
    }
}

/// One event for each of some streams.
struct Probe {
    /// The part of its stream names after the category.
    name: String,
    /// Streams and the events for them; the event ids make a second attempt harmless.
    appends: Vec<(String, String)>,
}

impl Probe {
    fn new() -> Self {
        let name = format!("probe{}", Uuid::new_v4().simple());
        let mut appends = Vec::new();
        let mut add = |stream: String, event_type: &str, data: &str| {
            let id = Uuid::new_v4();
            let event = format!(r#"[{{"event_id":"{id}","type":"{event_type}","data":{data}}}]"#);
            appends.push((stream, event));
        };
        for number in 0..ACCOUNTS {
            let data = format!(r#"{{"bucket":"{name}","amount":0.01,"note":"probe"}}"#);
            add(format!("account-{name}-{number}"), "Moved", &data);
        }
        add(format!("customer-{name}"), "CustomerNamed", r#"{"name":"probe"}"#);
        let placed = format!(r#"{{"customer_id":"customer-{name}"}}"#);
        add(format!("order-{name}"), "OrderPlaced", &placed);
        add(format!("fragile-{name}"), "Weighed", &format!(r#"{{"amount":{LIGHT}}}"#));
        Self { name, appends }
    }

    async fn append(&self, url: &str) {
        loop {
            let mut connection = databases::postgres(url).await;
            let append = async {
                for (stream, events) in &self.appends {
                    append_to(&mut connection, stream, events).await?;
                }
                Ok::<(), sqlx::Error>(())
            };
            if matches!(timeout(LIMIT, append).await, Ok(Ok(()))) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn wait(&self, url: &str) {
        loop {
            let mut connection = databases::mysql(url).await;
            while let Ok(Ok(missing)) = timeout(LIMIT, self.missing(&mut connection)).await {
                if missing.is_empty() {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// The read models that lack some of the events.
    async fn missing(
        &self,
        connection: &mut MySqlConnection,
    ) -> Result<Vec<&'static str>, sqlx::Error> {
        let Self { name, .. } = self;
        let (ledger, chain, counter, contacts, fragile): (i64, i64, i64, i64, i64) =
            sqlx::query_as(
                "SELECT (SELECT count(*) FROM ledger_versions
                     WHERE stream_id LIKE ? OR stream_id IN (?, ?)),
                    (SELECT count(*) FROM chain WHERE stream_id LIKE ?),
                    CAST((SELECT COALESCE(SUM(events), 0) FROM counter WHERE bucket = ?) AS SIGNED),
                    (SELECT count(*) FROM order_contacts WHERE order_id = ? AND name IS NOT NULL),
                    (SELECT count(*) FROM fragile WHERE stream_id = ?)",
            )
            .bind(format!("account-{name}-%"))
            .bind(format!("customer-{name}"))
            .bind(format!("order-{name}"))
            .bind(format!("account-{name}-%"))
            .bind(name)
            .bind(format!("order-{name}"))
            .bind(format!("fragile-{name}"))
            .fetch_one(connection)
            .await?;
        let models = [
            ("ledger", ledger, ACCOUNTS + 2),
            ("chain", chain, ACCOUNTS),
            ("counter", counter, ACCOUNTS),
            ("contacts", contacts, 1),
            ("fragile", fragile, 1),
        ];
        let lacking = models.into_iter().filter(|(_, shown, all)| shown < all);
        Ok(lacking.map(|(model, ..)| model).collect())
    }

    /// How many of its events are published, and which read models lack some.
    async fn progress(&self, stack: &Stack) -> String {
        let streams: Vec<&str> = self.appends.iter().map(|(stream, _)| stream.as_str()).collect();
        let mut postgres = databases::postgres(&stack.postgres_url).await;
        let published = sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM outbox WHERE stream_id = ANY ($1) AND processed_at IS NOT NULL",
        );
        let published = published.bind(&streams).fetch_one(&mut postgres).await;
        let missing = self.missing(&mut databases::mysql(&stack.mysql_url).await).await;
        let queues = Management::of(stack.name()).backlog().await;
        let all = streams.len();
        format!("slow: published {published:?} of {all}, missing in {missing:?}, queues {queues:?}")
    }
}
