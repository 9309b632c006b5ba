//! Rebuilds of tables to which people have attached something by hand.

use harness::Stack;
use sqlx::{AssertSqlSafe, Executor};

use crate::projector::TALLY;
use crate::projector_rebuild::{STREAMS, all_at, append_version, with_projection};

async fn rows(stack: &Stack, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&mut stack.mysql().await).await.unwrap()
}

/// Triggers and foreign keys to other tables are refused before the work, by rebuild and rollback. Views and rights
/// stay.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_swap_cannot_keep_is_refused_before_the_work() {
    with_projection(async |stack, _, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let rebuild = || stack.projector(TALLY).args(["rebuild", "start", "tally"]);
        let mut mysql = stack.mysql().await;
        let user = format!("reader_{}", stack.name());
        for sql in [
            "CREATE VIEW totals AS SELECT stream_id, total FROM tally".to_owned(),
            format!("CREATE USER {user}"),
            format!("GRANT SELECT ON {}.tally TO {user}", stack.name()),
            "CREATE TRIGGER watch AFTER UPDATE ON tally FOR EACH ROW SET @seen = 1".to_owned(),
            "CREATE TABLE notes (id INT PRIMARY KEY, stream_id VARCHAR(255) CHARACTER SET utf8mb4
                 COLLATE utf8mb4_0900_bin, FOREIGN KEY (stream_id) REFERENCES tally (stream_id))"
                .to_owned(),
        ] {
            mysql.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        let refused = rebuild().fail(1).await;
        assert!(refused.contains("table tally has the trigger watch"), "{refused}");
        assert!(
            refused.contains(&format!("table tally has the foreign key of {}.notes", stack.name())),
            "{refused}"
        );
        mysql.execute("DROP TRIGGER watch").await.unwrap();
        mysql.execute("DROP TABLE notes").await.unwrap();
        rebuild().succeed().await;
        assert_eq!(rows(stack, "SELECT COUNT(*) FROM totals").await, STREAMS);
        let granted = "SELECT COUNT(*) FROM mysql.tables_priv
                       WHERE db = DATABASE() AND table_name = 'tally' AND user LIKE 'reader\\_%'";
        assert_eq!(rows(stack, granted).await, 1);
        mysql
            .execute("CREATE TRIGGER watch AFTER UPDATE ON tally FOR EACH ROW SET @seen = 1")
            .await
            .unwrap();
        let refused = stack.projector(TALLY).args(["rebuild", "rollback", "tally"]).fail(1).await;
        assert!(refused.contains("table tally has the trigger watch"), "{refused}");
        mysql.execute("DROP TRIGGER watch").await.unwrap();
        stack.projector(TALLY).args(["rebuild", "rollback", "tally"]).succeed().await;
        mysql.execute(AssertSqlSafe(format!("DROP USER {user}"))).await.unwrap();
    })
    .await;
}

/// Columns, indexes and partitions that `tables.sql` does not have are given up only by choice.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_added_by_hand_goes_only_by_choice() {
    with_projection(async |stack, _, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let mut mysql = stack.mysql().await;
        for sql in [
            "ALTER TABLE tally ADD COLUMN note INT NULL",
            "CREATE INDEX by_total ON tally (total)",
            "ALTER TABLE tally PARTITION BY KEY () PARTITIONS 2",
        ] {
            mysql.execute(sql).await.unwrap();
        }
        let rebuild = || stack.projector(TALLY).args(["rebuild", "start", "tally"]);
        let refused = rebuild().fail(1).await;
        for extra in ["the column note", "the index by_total", "the partition p0", "--drop-extras"]
        {
            assert!(refused.contains(extra), "{refused}");
        }
        let dropped = rebuild().arg("--drop-extras").succeed().await;
        assert!(dropped.contains("table tally has the index by_total"), "{dropped}");
        all_at(stack, 1).await;
        rebuild().succeed().await;
    })
    .await;
}
