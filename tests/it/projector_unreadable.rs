//! Messages that RabbitMQ delivers and the client library cannot read.

use harness::{Raw, Stack};
use serde_json::json;

use crate::projector::{TALLY, dead_letters, tested, wait_for};

/// An unreadable message becomes a dead letter, like any message that is not an event, and delays
/// no other message. lapin alone would end the connection or the process at each delivery.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_client_library_cannot_read_is_dead_lettered() {
    // With a message id, and a type in ISO-8859-1.
    let kind = b"\x00\xa0\x24018c2c1e-7d4d-7a3b-9f52-8f1f3a3c2b10\x09Best\xe4tigt";
    // The nested arrays overflow the stack of lapin's parser.
    let levels = 12_000_u32;
    let mut deep = (levels * 5 + 3).to_be_bytes().to_vec();
    deep.extend(b"\x01a");
    for level in (0..levels).rev() {
        deep.push(b'A');
        deep.extend((level * 5 + 1).to_be_bytes());
    }
    deep.push(b'V');
    let deep = [b"\x20\x00", &deep[..]].concat();
    let good = || Raw { routing_key: b"order.Tested", properties: b"\0\0", body: b"{}" };
    let messages = [
        Raw { properties: kind, ..good() },
        Raw { routing_key: b"order.Best\xe4tigt", ..good() },
        // The name of a header.
        Raw { properties: b"\x20\x00\x00\x00\x00\x04\x02\xe4\xe4V", ..good() },
        Raw { properties: &deep, ..good() },
    ];
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let projector = stack.projector(TALLY).start_ready().await;
        let _relay = stack.relay().start_ready().await;
        let mut versions = "1".to_owned();
        stack.append("order-1", &[tested(&json!(1))]).await;
        for (message, version) in messages.iter().zip(2..) {
            message.publish(&stack.amqp_url, "events").await;
            stack.append("order-1", &[tested(&json!(version))]).await;
            versions = format!("{versions},{version}");
        }
        wait_for(stack, "order-1", &versions).await;
        let (of_type, others) = ("type: an event type must be", "message_id is missing");
        let mut reasons = dead_letters(stack, messages.len()).await;
        reasons.sort();
        assert!(reasons[3].contains(of_type), "{reasons:?}");
        assert!(reasons[..3].iter().all(|reason| reason.contains(others)), "{reasons:?}");
        for server in ["rabbitmq", "mysql", "postgresql"] {
            let lost = format!("projector_connection_losses_total{{server=\"{server}\"}}");
            assert!(projector.metric(&lost).await < 0.5, "{server} was lost");
        }
    })
    .await;
}
