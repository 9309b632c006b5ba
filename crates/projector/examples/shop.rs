//! A projector with a projection in Rust. To run it:
//!
//! ```sh
//! PROJECTOR__PROJECTOR__PROJECTIONS_DIR=crates/projector/examples/projections \
//!     cargo run --example shop -- run
//! ```

use std::process::ExitCode;

use projector::domain_events::StoredEvent;
use projector::sqlx::Row;
use projector::sqlx::types::chrono::NaiveDateTime;
use projector::{BoxFuture, CodeError, Registry, RustProjection, Tables, Value};

/// The time from the first payment of each order to its first shipment.
struct DeliveryTimes;

impl RustProjection for DeliveryTimes {
    fn apply<'a>(
        &'a self,
        event: &'a StoredEvent,
        tables: &'a mut Tables<'_>,
    ) -> BoxFuture<'a, Result<(), CodeError>> {
        Box::pin(async move {
            let order = &event.stream_id;
            let order = Value::Text(order.as_str().to_owned());
            let occurred_at = event.occurred_at.naive_utc();
            match event.event_type.as_str() {
                "OrderPaid" => paid(tables, order, occurred_at).await,
                "OrderShipped" => shipped(tables, order, occurred_at).await,
                _ => Ok(()),
            }
        })
    }
}

async fn paid(tables: &mut Tables<'_>, order: Value, at: NaiveDateTime) -> Result<(), CodeError> {
    // A second payment keeps the time of the first.
    let sql = "INSERT INTO delivery_times (order_id, paid_at) VALUES (?, ?)
               ON DUPLICATE KEY UPDATE paid_at = delivery_times.paid_at";
    tables.execute(sql, &[order, Value::Time(at)]).await.map(drop)
}

async fn shipped(
    tables: &mut Tables<'_>,
    order: Value,
    at: NaiveDateTime,
) -> Result<(), CodeError> {
    let sql = "SELECT paid_at FROM delivery_times WHERE order_id = ? AND seconds IS NULL";
    let rows = tables.fetch(sql, std::slice::from_ref(&order)).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let paid_at: NaiveDateTime =
        row.try_get("paid_at").map_err(|error| CodeError::Refused(error.to_string()))?;
    let seconds = (at - paid_at).num_seconds();
    if seconds < 0 {
        return Err(CodeError::Refused("the order was shipped before it was paid".to_owned()));
    }
    let sql = "UPDATE delivery_times SET seconds = ? WHERE order_id = ?";
    tables.execute(sql, &[Value::Integer(seconds), order]).await.map(drop)
}

fn main() -> ExitCode {
    projector::cli::main_with(Registry::default().with("delivery_times", DeliveryTimes))
}
