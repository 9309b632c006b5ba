//! Rebuilds whose process dies.

use harness::eventually;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor};

use crate::projector::TALLY;
use crate::projector_rebuild::{all_at, append_version, with_projection};

/// Goal: a rebuild that dies leaves either the previous or the new tables in service, and complete.
/// Method: the rebuild dies once at each of its steps. The command or the projector continues it, and
/// events are applied all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_dies_at_any_step_leaves_one_generation_whole() {
    with_projection(async |stack, _, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let rebuild = stack.projector(TALLY).args(["rebuild", "tally"]);
        let mut version = 1;
        let mut died = Vec::new();
        for name in projector::failpoints::ALL {
            for hits in 0.. {
                let place = format!("{name}={hits}*off->return");
                let (ended, output) = rebuild.clone().env("FAILPOINTS", &place).try_run().await;
                version += 1;
                append_version(stack, version).await;
                all_at(stack, version).await;
                if ended {
                    assert!(hits > 0, "no rebuild reaches {name}: {output}");
                    break;
                }
                assert!(
                    output.contains(&format!("failpoint: {name}")),
                    "the rebuild was not killed: {output}"
                );
                died.push(place);
                rebuild.succeed().await;
                all_at(stack, version).await;
                // A rebuild reaches the other places once.
                if !name.starts_with("replay::") {
                    break;
                }
            }
        }
        println!("the rebuild died {} times: {}", died.len(), died.join(", "));
    })
    .await;
}

/// A rebuild dies after it has sent the swap, and the statement reaches MySQL when another process
/// already continues the rebuild. The late swap must not put half-filled tables in service.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_swap_is_refused() {
    with_projection(async |stack, projector, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        projector.kill().await;
        let rebuild = stack.projector(TALLY).args(["rebuild", "tally"]);
        let dies_at = async |step: &str| {
            let (_, output) =
                rebuild.clone().env("FAILPOINTS", &format!("{step}=return")).try_run().await;
            assert!(output.contains(&format!("failpoint: {step}")), "{output}");
        };
        dies_at("rebuild::caught-up-behind-gate").await;
        let mut mysql = stack.mysql().await;
        let tables: Vec<(String, String)> = sqlx::query_as(
            "SELECT DATABASE(), CAST(table_name AS CHAR) FROM information_schema.tables
             WHERE table_schema = CONCAT(DATABASE(), '__new')
                 AND (table_name LIKE 'tally%' OR table_name LIKE 'projector\\_ticket\\_%')
             ORDER BY table_name LIKE 'tally%'",
        )
        .fetch_all(&mut mysql)
        .await
        .unwrap();
        let away = tables.iter().map(|(live, table)| {
            let from = if table.starts_with("tally") { "" } else { "__new" };
            format!("{live}{from}.{table} TO {live}__old.{table}")
        });
        let here = tables.iter().filter(|(_, table)| table.starts_with("tally"));
        let here = here.map(|(live, table)| format!("{live}__new.{table} TO {live}.{table}"));
        let late = format!("RENAME TABLE {}", away.chain(here).collect::<Vec<_>>().join(", "));
        dies_at("rebuild::tables-made").await;
        let error =
            sqlx::raw_sql(AssertSqlSafe(late)).execute(&mut mysql).await.unwrap_err().to_string();
        assert!(error.contains("projector_ticket_"), "{error}");
        rebuild.succeed().await;
        append_version(stack, 2).await;
        projector.restart();
        all_at(stack, 2).await;
    })
    .await;
}

/// The projector continues a rebuild whose command died. `status` shows the rebuild meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_projector_continues_an_interrupted_rebuild() {
    with_projection(async |stack, _, _| {
        append_version(stack, 1).await;
        all_at(stack, 1).await;
        let drift = "UPDATE tally SET total = total + 1";
        stack.mysql().await.execute(drift).await.unwrap();
        let rebuild = stack.projector(TALLY).args(["rebuild", "tally"]);
        for step in ["replay::checkpoint-moved", "rebuild::swapped"] {
            let (_, output) =
                rebuild.clone().env("FAILPOINTS", &format!("{step}=return")).try_run().await;
            assert!(output.contains(step), "{output}");
            eventually("the rebuild has ended", async || {
                let status = stack.projector(TALLY).args(["status", "--json"]);
                let status: Value = serde_json::from_str(&status.try_run().await.1).unwrap();
                (status["projections"][0]["rebuild"]["state"] == "done").then_some(())
            })
            .await;
            all_at(stack, 1).await;
        }
    })
    .await;
}
