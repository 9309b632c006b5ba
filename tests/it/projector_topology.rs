//! Exchanges, queues and bindings that are missing or have other settings.

use harness::{Daemon, Stack, eventually};
use lapin::ExchangeKind;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::projector::{TALLY, tested, wait_for};

const QUEUE: &str = "projector.tally";

/// `topology diff` reports what the broker lacks, and `topology apply` declares it.
#[tokio::test(flavor = "multi_thread")]
async fn topology_diff_and_apply_restore_missing_queues() {
    Stack::run(async |stack| {
        let topology = |action: &str| stack.projector(TALLY).args(["topology", action]);
        let output = topology("diff").fail(1).await;
        assert!(output.contains("queue projector.tally is missing"), "{output}");
        topology("apply").succeed().await;
        let output = topology("diff").succeed().await;
        assert!(output.contains("projector.tally has no consumer"), "{output}");
        stack.projector(TALLY).arg("migrate").succeed().await;
        let _daemon = stack.projector(TALLY).start_ready().await;
        assert!(topology("diff").succeed().await.contains("no difference"));
        let channel = stack.amqp().await.create_channel().await.unwrap();
        let options = QueueDeleteOptions::default();
        channel.queue_delete("projector.tally.dead".into(), options).await.unwrap();
        let output = topology("diff").fail(1).await;
        assert!(output.contains("queue projector.tally.dead is missing"), "{output}");
    })
    .await;
}

/// `topology diff` reports exchanges of another type, and names the setting with both values.
#[tokio::test(flavor = "multi_thread")]
async fn topology_diff_reports_an_exchange_of_another_type() {
    Stack::run(async |stack| {
        for folder in [TALLY, "tests/projections/spread"] {
            stack.projector(folder).args(["topology", "apply"]).succeed().await;
        }
        let channel = stack.amqp().await.create_channel().await.unwrap();
        for exchange in ["events", "projector.spread.by8"] {
            let delete = ExchangeDeleteOptions::default();
            channel.exchange_delete(exchange.into(), delete).await.unwrap();
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            let (kind, arguments) = (ExchangeKind::Fanout, FieldTable::default());
            channel.exchange_declare(exchange.into(), kind, options, arguments).await.unwrap();
        }
        let diff = stack.projector("tests/projections/spread").args(["topology", "diff"]);
        let output = diff.fail(1).await;
        for line in [
            "exchange events has other settings (inequivalent arg 'type'",
            "received 'topic' but current is 'fanout'",
            "exchange projector.spread.by8 has other settings (inequivalent arg 'type'",
            "delete it in RabbitMQ",
        ] {
            assert!(output.contains(line), "{line}: {output}");
        }
        channel.exchange_delete("events".into(), <_>::default()).await.unwrap();
        let output = stack.projector(TALLY).args(["topology", "diff", "--json"]).output().await;
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let wanted = json!({ "object": "exchange events", "difference": "is missing",
                             "remedy": "`projector topology apply` declares it" });
        assert_eq!(
            (&found[0]["projection"], &found[0]["differences"][0]),
            (&json!("tally"), &wanted)
        );
    })
    .await;
}

/// AMQP cannot list bindings. `topology diff` says so, and `topology apply` declares them again: after that,
/// messages arrive through the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_binding_is_declared_again() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let daemon = stack.projector(TALLY).start_ready().await;
        let channel = stack.amqp().await.create_channel().await.unwrap();
        let (queue, exchange) = (QUEUE.into(), "events".into());
        channel.queue_unbind(queue, exchange, "order.#".into(), <_>::default()).await.unwrap();
        let output = stack.projector(TALLY).args(["topology", "diff"]).succeed().await;
        assert!(output.contains("bindings cannot be read over AMQP"), "{output}");
        stack.projector(TALLY).args(["topology", "apply"]).succeed().await;
        let _relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;
        let healed = "projector_healed_events_total{projection=\"tally\",by=\"sweep\"}";
        assert!(daemon.metric(healed).await < 0.5, "the event did not come through the queue");
    })
    .await;
}

/// Declares the queue of the projection with a setting of its own.
async fn declare_otherwise(channel: &lapin::Channel) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(3));
    channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
}

/// Waits until readiness names the setting that differs.
async fn reports_the_setting(daemon: &Daemon) {
    eventually("readiness names the setting", async || {
        let (status, body) = daemon.get("/readyz").await?;
        let named = body.contains("queue projector.tally exists in RabbitMQ with other settings")
            && body.contains("inequivalent arg 'x-")
            && body.contains("delete it there");
        (status == 503 && named).then_some(())
    })
    .await;
}

/// A queue with other settings does not end the projector, which may serve other projections: it says which
/// setting differs, and goes on once the queue was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_settings_is_reported_until_it_is_deleted() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let channel = stack.amqp().await.create_channel().await.unwrap();
        declare_otherwise(&channel).await;
        let daemon = stack.projector(TALLY).start();
        reports_the_setting(&daemon).await;
        let log = daemon.log();
        let lines = log.lines().filter(|line| line.contains("with other settings")).count();
        assert_eq!(lines, 1, "{log}");
        channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await.unwrap();
        daemon.ready().await;
        let _relay = stack.relay().start_ready().await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;
    })
    .await;
}

/// What happened to a queue at run time is said as it is: it was deleted, or it has other settings now.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_replaced_at_run_time_is_reported_as_such() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let daemon = stack.projector(TALLY).start_ready().await;
        let channel = stack.amqp().await.create_channel().await.unwrap();
        channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await.unwrap();
        eventually("the log says that the queue was deleted", async || {
            let said = "queue projector.tally was deleted in RabbitMQ while it was consumed";
            daemon.log().contains(said).then_some(())
        })
        .await;
        daemon.ready().await;
        // Until the projector comes between the two.
        eventually("the queue is replaced", async || {
            let channel = stack.amqp().await.create_channel().await.unwrap();
            channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await.unwrap();
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            let options = QueueDeclareOptions::durable();
            channel.queue_declare(QUEUE.into(), options, arguments).await.ok().map(drop)
        })
        .await;
        reports_the_setting(&daemon).await;
        assert!(
            daemon.log().contains("exists in RabbitMQ with other settings"),
            "{}",
            daemon.log()
        );
        assert!(!daemon.log().contains("check whether"), "{}", daemon.log());
        channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await.unwrap();
        daemon.ready().await;
    })
    .await;
}
