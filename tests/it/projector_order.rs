//! Projections that need the order of the event store between streams: live, rebuilt and verified.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use harness::{Stack, event, eventually, within};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::time::timeout;

use crate::projector_rebuild::drop_databases;

/// Writes the files of a projection, and returns the folder of projections.
fn write(stack: &Stack, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = stack.folder().join("projections");
    fs::create_dir_all(folder.join(name)).unwrap();
    for (file, text) in files {
        fs::write(folder.join(name).join(file), text).unwrap();
    }
    folder
}

/// A parent in one stream, and children of it in others. The names of the child streams sort before that of the
/// parent.
fn carts(stack: &Stack) -> PathBuf {
    let key = "VARCHAR(100) COLLATE utf8mb4_0900_bin";
    let tables = format!(
        "CREATE TABLE products (id {key} PRIMARY KEY, name VARCHAR(50) NOT NULL);
         CREATE TABLE cart_items (
             cart {key}, product {key}, items INT NOT NULL, PRIMARY KEY (cart, product),
             FOREIGN KEY (product) REFERENCES products (id) ON DELETE CASCADE
         );"
    );
    write(
        stack,
        "carts",
        &[
            ("projection.toml", "categories = [\"cart\", \"product\"]"),
            ("tables.sql", &tables),
            ("ProductCreated.sql", "INSERT INTO products VALUES (:stream_id, :data.name);"),
            (
                "ItemAdded.sql",
                "INSERT INTO cart_items VALUES (:stream_id, :data.product, 1)
                 ON DUPLICATE KEY UPDATE items = items + 1;",
            ),
        ],
    )
}

async fn append_carts(stack: &Stack, round: i64) {
    for number in 0..3 {
        let product = format!("product-{round}-{number}");
        stack.append(&product, &[event("ProductCreated", &json!({ "name": "p" }))]).await;
        for _ in 0..2 {
            let added = event("ItemAdded", &json!({ "product": product }));
            stack.append(&format!("cart-{number}"), &[added]).await;
        }
    }
}

async fn items(stack: &Stack, wanted: i64) {
    eventually("all items are in their carts", async || {
        let sum = "SELECT CAST(COALESCE(SUM(items), 0) AS SIGNED) FROM cart_items";
        let sum: i64 = sqlx::query_scalar(sum).fetch_one(&mut stack.mysql().await).await.unwrap();
        (sum == wanted).then_some(())
    })
    .await;
    let parked: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM carts__parked")
        .fetch_one(&mut stack.mysql().await)
        .await
        .unwrap();
    assert_eq!(parked, 0);
}

/// A foreign key between the tables of a projection: live, two rebuilds, `verify --repair` and cleanup work.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_key_between_streams_is_kept_in_every_way() {
    Stack::run(async |stack| {
        let folder = carts(stack);
        let projector = || stack.projector(&folder);
        let checked = projector().args(["check"]).succeed().await;
        assert!(checked.contains("in the order of the event store"), "{checked}");
        projector().arg("migrate").succeed().await;
        let _relay = stack.relay().start_ready().await;
        let _live = projector().start_ready().await;
        append_carts(stack, 1).await;
        items(stack, 6).await;
        for round in 2..4 {
            append_carts(stack, round).await;
            projector().args(["rebuild", "start", "carts"]).succeed().await;
            items(stack, round * 6).await;
            projector().args(["verify", "carts"]).succeed().await;
        }
        let mut mysql = stack.mysql().await;
        for drift in [
            "UPDATE products SET name = 'x' WHERE id = 'product-1-0'",
            "DELETE FROM products WHERE id = 'product-1-1'",
        ] {
            mysql.execute(drift).await.unwrap();
        }
        let found = projector().args(["verify", "carts", "--repair"]).succeed().await;
        assert!(found.contains("products (product-1-0): name"), "{found}");
        projector().args(["verify", "carts"]).succeed().await;
        items(stack, 18).await;
        projector().args(["rebuild", "rollback", "carts"]).succeed().await;
        append_carts(stack, 4).await;
        items(stack, 24).await;
        projector().args(["rebuild", "cleanup", "carts"]).succeed().await;
        let single = projector().args(["rebuild", "start", "carts", "--stream", "cart-1"]);
        let refused = single.fail(1).await;
        assert!(refused.contains("in the order of the event store"), "{refused}");
        drop_databases(stack).await;
    })
    .await;
}

/// A child arrives while its parent, which is earlier in the event store, was lost on the way, and while another
/// transaction with an earlier position is open. Nothing parks.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_child_waits_for_its_earlier_parent() {
    Stack::run(async |stack| {
        let folder = carts(stack);
        stack.projector(&folder).arg("migrate").succeed().await;
        let _live = stack.projector(&folder).start_ready().await;
        let created = event("ProductCreated", &json!({ "name": "p" }));
        stack.append("product-1", &[created]).await;
        let lost = "UPDATE outbox SET processed_at = now() WHERE stream_id = 'product-1'";
        stack.postgres().await.execute(lost).await.unwrap();
        let _relay = stack.relay().start_ready().await;
        let added = |product: &str| event("ItemAdded", &json!({ "product": product }));
        stack.append("cart-1", &[added("product-1")]).await;
        items(stack, 1).await;
        // The child is committed and delivered before the parent.
        let mut writer = stack.postgres().await;
        let mut open = writer.begin().await.unwrap();
        let created = json!([event("ProductCreated", &json!({ "name": "p" }))]);
        harness::append(&mut open, "product-2", None, &created).await.unwrap();
        stack.append("cart-2", &[added("product-2")]).await;
        eventually("the child is published", async || {
            let pending = "SELECT count(*) FROM outbox WHERE processed_at IS NULL";
            let pending: i64 =
                sqlx::query_scalar(pending).fetch_one(&mut stack.postgres().await).await.unwrap();
            (pending == 0).then_some(())
        })
        .await;
        open.commit().await.unwrap();
        items(stack, 2).await;
    })
    .await;
}

/// A tree whose rows refer to rows of the same table, with a foreign key and with `order = "global"`: the root's
/// stream sorts last.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_the_same_live_and_rebuilt() {
    Stack::run(async |stack| {
        let key = "VARCHAR(100) COLLATE utf8mb4_0900_bin";
        write(
            stack,
            "keyed",
            &[
                ("projection.toml", "categories = [\"node\"]"),
                (
                    "tables.sql",
                    &format!(
                        "CREATE TABLE keyed (id {key} PRIMARY KEY, parent {key} NULL,
                             FOREIGN KEY (parent) REFERENCES keyed (id));"
                    ),
                ),
                ("NodeAdded.sql", "INSERT INTO keyed VALUES (:stream_id, :data.parent?);"),
            ],
        );
        let folder = write(
            stack,
            "deep",
            &[
                ("projection.toml", "categories = [\"node\"]\norder = \"global\""),
                (
                    "tables.sql",
                    &format!("CREATE TABLE deep (id {key} PRIMARY KEY, depth INT NOT NULL);"),
                ),
                (
                    "NodeAdded.sql",
                    "INSERT INTO deep SELECT :stream_id,
                         COALESCE((SELECT p.depth FROM deep AS p WHERE p.id = :data.parent?), 0) + 1;",
                ),
            ],
        );
        stack.projector(&folder).arg("migrate").succeed().await;
        let _relay = stack.relay().start_ready().await;
        let _live = stack.projector(&folder).start_ready().await;
        let mut parent = None;
        for name in ["z", "y", "b", "c", "a"] {
            let node = format!("node-{name}");
            stack.append(&node, &[event("NodeAdded", &json!({ "parent": parent }))]).await;
            parent = Some(node);
        }
        let depths = async || {
            let read = "SELECT GROUP_CONCAT(d.id, d.depth ORDER BY d.depth)
                        FROM deep AS d JOIN keyed USING (id)";
            let read: Option<String> =
                sqlx::query_scalar(read).fetch_one(&mut stack.mysql().await).await.unwrap();
            read.unwrap_or_default()
        };
        let right = "node-z1,node-y2,node-b3,node-c4,node-a5";
        eventually("the tree is live", async || (depths().await == right).then_some(())).await;
        for projection in ["deep", "keyed"] {
            stack.projector(&folder).args(["verify", projection]).succeed().await;
            stack.projector(&folder).args(["rebuild", projection]).succeed().await;
            stack.projector(&folder).args(["verify", projection]).succeed().await;
        }
        assert_eq!(depths().await, right);
        drop_databases(stack).await;
    })
    .await;
}

/// A gap of three billion positions costs neither a rebuild nor `verify` nor the live projector time.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_gap_in_positions_is_skipped() {
    Stack::run(async |stack| {
        let folder = carts(stack);
        stack.projector(&folder).arg("migrate").succeed().await;
        let _relay = stack.relay().start_ready().await;
        append_carts(stack, 1).await;
        let gap = "SELECT setval(pg_get_serial_sequence('events', 'position'), 3000000000)";
        stack.postgres().await.execute(gap).await.unwrap();
        append_carts(stack, 2).await;
        let _live = stack.projector(&folder).start_ready().await;
        items(stack, 12).await;
        for arguments in [
            &["rebuild", "start", "carts", "--dry-run"][..],
            &["rebuild", "start", "carts"],
            &["verify", "carts"],
        ] {
            let run = stack.projector(&folder).args(arguments.iter().copied());
            let ended = timeout(Duration::from_secs(30), run.succeed()).await;
            assert!(ended.is_ok(), "{arguments:?} takes too long");
        }
        // Right after the rebuild, the live projector may not have read the new tables.
        let status = stack.projector(&folder).arg("status");
        let right = within(Duration::from_secs(30), "the status is ok", async || {
            let (is_ok, text) = status.try_run().await;
            is_ok.then_some(text)
        });
        let text = right.await;
        assert!(text.contains("lag         0 events"), "{text}");
        drop_databases(stack).await;
    })
    .await;
}

/// A database whose name is as long as MySQL allows, with characters that need quotes.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_an_awkward_name_is_rebuilt() {
    Stack::run(async |stack| {
        let folder = carts(stack);
        let unique = stack.name();
        for length in [40, 57, 64] {
            let live = format!("{unique}-`Q`.{}", "A".repeat(length - unique.len() - 5));
            assert_eq!(live.len(), length);
            let quoted = format!("`{}`", live.replace('`', "``"));
            let mut mysql = stack.mysql().await;
            mysql.execute(AssertSqlSafe(format!("CREATE DATABASE {quoted}"))).await.unwrap();
            let url = stack
                .mysql_url
                .replace(&format!("/{unique}"), &format!("/{}", live.replace('`', "%60")));
            let projector = || stack.projector(&folder).env("READ_MODEL_URL", &url);
            projector().arg("migrate").succeed().await;
            append_carts(stack, i64::try_from(length).unwrap()).await;
            projector().args(["rebuild", "start", "carts"]).succeed().await;
            projector().args(["rebuild", "start", "carts"]).succeed().await;
            projector().args(["verify", "carts"]).succeed().await;
            projector().args(["rebuild", "rollback", "carts"]).succeed().await;
            projector().args(["rebuild", "cleanup", "carts"]).succeed().await;
            let named = "SELECT CAST(schema_name AS CHAR) FROM information_schema.schemata
                         WHERE schema_name LIKE CONCAT(?, '-%')";
            let found: Vec<String> =
                sqlx::query_scalar(named).bind(unique).fetch_all(&mut mysql).await.unwrap();
            assert_eq!(found.len(), 4, "{found:?}");
            for name in found {
                let drop = format!("DROP DATABASE `{}`", name.replace('`', "``"));
                mysql.execute(AssertSqlSafe(drop)).await.unwrap();
            }
        }
    })
    .await;
}
