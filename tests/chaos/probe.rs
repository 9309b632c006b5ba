//! How long it takes until events flow again: one is appended, and waited for.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::databases::{self, LIMIT};
use crate::writers::append_to;

/// Nobody wants to be woken for less; whoever takes longer does not recover by himself.
pub(crate) const RECOVERY_LIMIT: Duration = Duration::from_mins(2);

/// Appends an event, and gives how long it took until the read models show it; `None` when they do not.
pub(crate) async fn recovery(postgres_url: &str, mysql_url: &str) -> Option<Duration> {
    let begun = Instant::now();
    let shown = async {
        let id = Uuid::new_v4();
        let stream = format!("account-probe{}", id.simple());
        append(postgres_url, &stream, id).await;
        wait(mysql_url, &stream).await;
    };
    timeout(RECOVERY_LIMIT, shown).await.ok().map(|()| begun.elapsed())
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
