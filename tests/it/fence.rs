//! Reading the event store in global order while writers append.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use domain_events::{Category, Position, StoredEvent};
use futures_util::future::join_all;
use harness::{Stack, append, event};
use rand::RngExt;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::time::sleep;

fn order() -> Vec<Category> {
    vec![Category::new("order").unwrap()]
}

fn place(event: &StoredEvent) -> (String, i64, i64) {
    let StoredEvent { stream_id, version, position, .. } = event;
    (stream_id.as_str().to_owned(), version.get(), position.get())
}

/// Appends for a while. The writers use every way that makes positions visible out of order.
async fn write_hostilely(stack: &Stack, writer: usize, until: Instant, prepared: bool) {
    let mut connection = stack.postgres().await;
    let mut round = 0;
    while Instant::now() < until {
        round += 1;
        let kind = rand::rng().random_range(0..7);
        let pause = Duration::from_millis(rand::rng().random_range(0..120));
        let stream = format!("order-{writer}-{}", round % 5);
        let events = json!([event("A", &json!({})), event("B", &json!({}))]);
        let mut transaction = connection.begin().await.unwrap();
        match kind {
            0 => {
                // Events after a savepoint that is rolled back.
                transaction.execute("SAVEPOINT s").await.unwrap();
                append(&mut transaction, &stream, None, &events).await.unwrap();
                transaction.execute("ROLLBACK TO SAVEPOINT s").await.unwrap();
                append(&mut transaction, &stream, None, &events).await.unwrap();
            }
            1 => {
                let insert = AssertSqlSafe(format!(
                    "INSERT INTO events (event_id, stream_id, stream_version, event_type, data)
                     SELECT gen_random_uuid(), 'order-raw-{writer}-{round}', n, 'A', '{{}}'
                     FROM generate_series(1, 3) n"
                ));
                transaction.execute(insert).await.unwrap();
            }
            _ => drop(append(&mut transaction, &stream, None, &events).await.unwrap()),
        }
        sleep(pause).await;
        match kind {
            2 => transaction.rollback().await.unwrap(),
            3 if prepared => {
                let name = format!("{}-{writer}-{round}", stack.name());
                transaction
                    .execute(AssertSqlSafe(format!("PREPARE TRANSACTION '{name}'")))
                    .await
                    .unwrap();
                drop(transaction);
                sleep(pause).await;
                let mut other = stack.postgres().await;
                other.execute(AssertSqlSafe(format!("COMMIT PREPARED '{name}'"))).await.unwrap();
                connection = stack.postgres().await;
            }
            _ => transaction.commit().await.unwrap(),
        }
    }
}

/// E12: a reader behind the fence misses no event and reads none out of order. PostgreSQL assigns
/// positions before the commit. A reader without the fence, which continues after the highest position
/// it has seen, therefore misses events: half of them, with these writers.
#[tokio::test(flavor = "multi_thread")]
async fn e12_the_fence_loses_no_event_and_inverts_none() {
    Stack::run(async |stack| {
        let limit: String = sqlx::query_scalar("SHOW max_prepared_transactions")
            .fetch_one(&mut stack.postgres().await)
            .await
            .unwrap();
        let until = Instant::now() + Duration::from_secs(6);
        let writers = (0..12).map(|writer| write_hostilely(stack, writer, until, limit != "0"));
        let writing = async {
            join_all(writers).await;
        };
        let reading = async {
            let mut session = stack.session().await;
            let (mut after, mut read) = (Position::START, Vec::new());
            let mut last_round = false;
            loop {
                let mut fence = session.take_fence().await.unwrap();
                while !fence.is_decided() {
                    sleep(Duration::from_millis(5)).await;
                    session.refresh_fence(&mut fence).await.unwrap();
                }
                let until_position = fence.limit();
                while after < until_position {
                    let (page, end) =
                        session.read_events(after, until_position, &order(), 100).await.unwrap();
                    after = end;
                    read.extend(page.iter().map(place));
                }
                if last_round {
                    return read;
                }
                last_round = Instant::now() > until + Duration::from_secs(1);
            }
        };
        // This reader continues after the highest position. It misses lower positions that commit
        // later.
        let naive = async {
            let mut connection = stack.postgres().await;
            let (mut after, mut read) = (0_i64, 0_usize);
            while Instant::now() < until + Duration::from_secs(1) {
                let page: Vec<i64> = sqlx::query_scalar(
                    "SELECT position FROM events WHERE position > $1 ORDER BY position LIMIT 100",
                )
                .bind(after)
                .fetch_all(&mut connection)
                .await
                .unwrap();
                read += page.len();
                after = page.last().copied().unwrap_or(after);
                sleep(Duration::from_millis(5)).await;
            }
            read
        };
        let ((), read, naively_read) = tokio::join!(writing, reading, naive);

        let stored: Vec<(String, i64)> =
            sqlx::query_as("SELECT stream_id, stream_version FROM events")
                .fetch_all(&mut stack.postgres().await)
                .await
                .unwrap();
        assert!(
            naively_read < stored.len(),
            "the naive reader missed nothing, so the test proves nothing"
        );
        assert!(stored.len() > 300, "{} events are too few for the test", stored.len());
        let seen: HashSet<_> = read.iter().map(|(stream, version, _)| (stream, *version)).collect();
        let lost = stored.iter().filter(|(stream, version)| !seen.contains(&(stream, *version)));
        assert_eq!(lost.count(), 0);
        assert_eq!(read.len(), stored.len(), "each event is read once");
        let mut heads = BTreeMap::new();
        for (stream, version, _) in read {
            let head = heads.insert(stream.clone(), version).unwrap_or(0);
            assert_eq!(version, head + 1, "{stream}");
        }
    })
    .await;
}

/// An open append holds the fence, later writers do not, and the fence names the open transaction.
#[tokio::test]
async fn an_open_append_holds_the_fence_and_is_named() {
    Stack::run(async |stack| {
        let mut writer = stack.postgres().await;
        writer.execute("SET application_name = 'slow application'").await.unwrap();
        let mut open = writer.begin().await.unwrap();
        append(&mut open, "order-1", None, &json!([event("A", &json!({}))])).await.unwrap();
        stack.append("order-2", &[event("A", &json!({}))]).await;

        let mut session = stack.session().await;
        let mut fence = session.take_fence().await.unwrap();
        assert_eq!(fence.limit().get(), 2);
        session.refresh_fence(&mut fence).await.unwrap();
        assert!(!fence.is_decided());
        let writers = session.fence_writers(&fence).await.unwrap();
        assert_eq!(writers.len(), 1);
        assert_eq!(writers[0].application_name, "slow application");

        // Later writers do not hold up the fence.
        let mut later = stack.postgres().await;
        let mut later = later.begin().await.unwrap();
        append(&mut later, "order-3", None, &json!([event("A", &json!({}))])).await.unwrap();
        open.commit().await.unwrap();
        session.refresh_fence(&mut fence).await.unwrap();
        assert!(fence.is_decided());
        let (read, _) =
            session.read_events(Position::START, fence.limit(), &order(), 10).await.unwrap();
        let streams: Vec<_> = read.iter().map(|event| place(event).0).collect();
        assert_eq!(streams, ["order-1", "order-2"]);
    })
    .await;
}

/// The fence of an empty event store is below the first position.
#[tokio::test]
async fn an_empty_store_has_a_fence_before_its_first_event() {
    Stack::run(async |stack| {
        let fence = stack.session().await.take_fence().await.unwrap();
        assert_eq!((fence.limit(), fence.is_decided()), (Position::START, true));
    })
    .await;
}
