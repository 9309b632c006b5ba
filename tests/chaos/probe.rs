//! How long it takes until events flow again: one is appended, and waited for.

use std::future::pending;
use std::time::{Duration, Instant};

use harness::Stack;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::broker::Management;
use crate::databases::{self, LIMIT};
use crate::writers::append_to;

/// From then on it is told where the event is.
const SLOW: Duration = Duration::from_secs(6);

/// Appends an event, and gives how long it took until the read models show it; `None` when they do
/// not within the limit.
/// Tells where it is when that takes long.
pub(crate) async fn recovery(
    stack: &Stack,
    limit: Duration,
    tell: impl Fn(&str),
) -> Option<Duration> {
    let begun = Instant::now();
    let id = Uuid::new_v4();
    let stream = format!("account-probe{}", id.simple());
    let shown = async {
        append(&stack.postgres_url, &stream, id).await;
        wait(&stack.mysql_url, &stream).await;
    };
    let diagnosis = async {
        sleep(SLOW).await;
        tell(&whereabouts(stack, &stream).await);
        pending::<()>().await;
    };
    tokio::select! {
        shown = timeout(limit, shown) => shown.ok().map(|()| begun.elapsed()),
        () = diagnosis => None,
    }
}

/// How far an event has got.
async fn whereabouts(stack: &Stack, stream: &str) -> String {
    let mut postgres = databases::postgres(&stack.postgres_url).await;
    let published = sqlx::query_scalar::<_, bool>(
        "SELECT processed_at IS NOT NULL FROM outbox WHERE stream_id = $1",
    );
    let published = published.bind(stream).fetch_optional(&mut postgres).await;
    let mut mysql = databases::mysql(&stack.mysql_url).await;
    let applied = sqlx::query_as::<_, (i64, i64)>(
        "SELECT (SELECT count(*) FROM ledger_streams WHERE stream_id = ?),
                (SELECT count(*) FROM chain WHERE stream_id = ?)",
    );
    let applied = applied.bind(stream).bind(stream).fetch_one(&mut mysql).await;
    let queues = Management::of(stack.name()).backlog().await;
    format!("slow: published {published:?}, in ledger and chain {applied:?}, queues {queues:?}")
}

async fn append(url: &str, stream: &str, id: Uuid) {
    let data = r#"{"bucket":"b00","amount":0.01,"note":"probe"}"#;
    let events = format!(r#"[{{"event_id":"{id}","type":"Moved","data":{data}}}]"#);
    loop {
        let mut connection = databases::postgres(url).await;
        // Its id makes a second try harmless.
        let append = append_to(&mut connection, stream, &events);
        if matches!(timeout(LIMIT, append).await, Ok(Ok(()))) {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn wait(url: &str, stream: &str) {
    loop {
        let mut connection = databases::mysql(url).await;
        loop {
            let look = sqlx::query_scalar::<_, i64>(
                "SELECT (SELECT count(*) FROM ledger_versions WHERE stream_id = ?)
                      + (SELECT count(*) FROM chain WHERE stream_id = ?)",
            );
            let look = look.bind(stream).bind(stream).fetch_one(&mut connection);
            let Ok(Ok(shown)) = timeout(LIMIT, look).await else { break };
            if shown >= 2 {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
