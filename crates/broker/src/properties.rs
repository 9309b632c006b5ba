//! Converts between a [`Message`] and the properties that lapin sends and receives.

use std::borrow::Cow;

use domain_events::{HeaderValue, Message, header};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

const PERSISTENT: u8 = 2;

/// The properties of a message to send. Omits a text that is too long for an AMQP property.
pub(crate) fn of(message: &Message, app_id: &ShortString) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        let Some(name) = short(name) else { continue };
        match value {
            HeaderValue::Text(text) => {
                headers.insert(name, AMQPValue::LongString(text.as_str().into()))
            }
            HeaderValue::Integer(number) => headers.insert(name, AMQPValue::LongLongInt(*number)),
            HeaderValue::Other => continue,
        };
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_app_id(app_id.clone())
        .with_headers(headers);
    let text = |text: &Option<String>| text.as_deref().and_then(short);
    if let Some(id) = text(&message.message_id) {
        properties = properties.with_message_id(id);
    }
    if let Some(kind) = text(&message.message_type) {
        properties = properties.with_type(kind);
    }
    if let Some(content_type) = text(&message.content_type) {
        properties = properties.with_content_type(content_type);
    }
    if let Some(correlation_id) = text(&message.correlation_id) {
        properties = properties.with_correlation_id(correlation_id);
    }
    if let Some(timestamp) = message.timestamp {
        properties = properties.with_timestamp(timestamp);
    }
    properties
}

/// An upper bound of the size of the header frame of a message. AMQP cannot split that frame.
pub(crate) fn header_bytes(message: &Message) -> usize {
    // The frame itself, the five properties that are short strings, and the numbers.
    const OTHERS: usize = 5 * 256 + 64;
    let header = |(name, value): (&Cow<'static, str>, &HeaderValue)| {
        name.len()
            + match value {
                HeaderValue::Text(text) => text.len() + 6,
                HeaderValue::Integer(_) | HeaderValue::Other => 10,
            }
    };
    OTHERS + message.headers.iter().map(header).sum::<usize>()
}

/// The message with the received properties.
pub(crate) fn message(
    routing_key: &ShortString,
    properties: &BasicProperties,
    body: Vec<u8>,
) -> Message {
    let text = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    let headers = properties.headers().as_ref().map(|headers| {
        headers
            .inner()
            .iter()
            .map(|(name, value)| (header::named(name.as_str()), header_value(value)))
            .collect()
    });
    Message {
        routing_key: routing_key.as_str().to_owned(),
        message_id: text(properties.message_id()),
        message_type: text(properties.kind()),
        timestamp: *properties.timestamp(),
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        correlation_id: text(properties.correlation_id()),
        headers: headers.unwrap_or_default(),
        body,
    }
}

fn header_value(value: &AMQPValue) -> HeaderValue {
    let integer = match value {
        AMQPValue::LongString(text) => {
            return match str::from_utf8(text.as_bytes()) {
                Ok(text) => HeaderValue::Text(text.to_owned()),
                Err(_) => HeaderValue::Other,
            };
        }
        AMQPValue::ShortString(text) => return HeaderValue::Text(text.as_str().to_owned()),
        AMQPValue::ShortShortInt(number) => i64::from(*number),
        AMQPValue::ShortShortUInt(number) => i64::from(*number),
        AMQPValue::ShortInt(number) => i64::from(*number),
        AMQPValue::ShortUInt(number) => i64::from(*number),
        AMQPValue::LongInt(number) => i64::from(*number),
        AMQPValue::LongUInt(number) => i64::from(*number),
        AMQPValue::LongLongInt(number) => *number,
        _ => return HeaderValue::Other,
    };
    HeaderValue::Integer(integer)
}

fn short(text: &str) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}
