//! Properties of every message, however broken, checked with the seeds and by `cargo xtask fuzz`.

use domain_events::{DecodeError, Message};
use lapin::BasicProperties;
use lapin::protocol::basic::{gen_properties, parse_properties};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::properties;

/// Bytes of a header frame without the properties.
const FRAME: usize = 7 + 12 + 1;
/// A shorter part of the message may occur in the reason by chance.
const TELLING: usize = 24;

/// Converts a message from AMQP to an event and back.
///
/// The input consists of lines, an empty line and the body. A line is `property=value`, or
/// `.header:t=value` with the letter of the AMQP type.
///
/// # Panics
///
/// When a property does not hold.
pub fn message(input: &[u8]) {
    let (properties, body) = read(input);
    let received = properties::message(&"key".into(), &on_the_wire(&properties), body.to_vec());
    let event = match received.decode() {
        Ok(event) => event,
        Err(error) => return assert_quotes_nothing(&error, input),
    };
    let sent = Message::encode(event.clone(), "key".to_owned());
    let properties = properties::of(&sent, &"fuzz".into());
    assert!(FRAME + generated(&properties).len() <= properties::header_bytes(&sent));
    let body = sent.body;
    let received = properties::message(&"key".into(), &on_the_wire(&properties), body);
    assert_eq!(received.decode(), Ok(event));
}

fn read(input: &[u8]) -> (BasicProperties, &[u8]) {
    let (mut properties, mut headers) = (BasicProperties::default(), FieldTable::default());
    let mut rest = input;
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        if line.is_empty() {
            return (properties.with_headers(headers), rest);
        }
        let middle = line.iter().position(|byte| *byte == b'=').unwrap_or(end);
        let (name, value) = (&line[..middle], line.get(middle + 1..).unwrap_or_default());
        let Ok(name) = str::from_utf8(name) else { continue };
        match name.strip_prefix('.').map(|name| name.split_once(':').unwrap_or((name, "S"))) {
            Some((name, kind)) => {
                if let Ok(name) = ShortString::try_new(name) {
                    headers.insert(name, header(kind, value));
                }
            }
            None => properties = with(properties, name, &String::from_utf8_lossy(value)),
        }
    }
}

fn header(kind: &str, value: &[u8]) -> AMQPValue {
    let number: i64 = str::from_utf8(value).ok().and_then(|it| it.parse().ok()).unwrap_or(0);
    match kind {
        "S" => AMQPValue::LongString(value.into()),
        "b" => AMQPValue::ShortShortInt(i8::try_from(number).unwrap_or(i8::MIN)),
        "B" => AMQPValue::ShortShortUInt(u8::try_from(number).unwrap_or(u8::MAX)),
        "s" => AMQPValue::ShortInt(i16::try_from(number).unwrap_or(i16::MIN)),
        "u" => AMQPValue::ShortUInt(u16::try_from(number).unwrap_or(u16::MAX)),
        "I" => AMQPValue::LongInt(i32::try_from(number).unwrap_or(i32::MIN)),
        "i" => AMQPValue::LongUInt(u32::try_from(number).unwrap_or(u32::MAX)),
        "l" => AMQPValue::LongLongInt(number),
        "T" => AMQPValue::Timestamp(number.unsigned_abs()),
        "t" => AMQPValue::Boolean(number == 1),
        _ => AMQPValue::Void,
    }
}

fn with(properties: BasicProperties, name: &str, value: &str) -> BasicProperties {
    let Ok(text) = ShortString::try_new(value) else { return properties };
    match name {
        "message_id" => properties.with_message_id(text),
        "type" => properties.with_type(text),
        "content_type" => properties.with_content_type(text),
        "content_encoding" => properties.with_content_encoding(text),
        "correlation_id" => properties.with_correlation_id(text),
        "timestamp" => properties.with_timestamp(value.parse().unwrap_or(u64::MAX)),
        _ => properties,
    }
}

/// The properties after lapin has written and read them.
fn on_the_wire(properties: &BasicProperties) -> BasicProperties {
    let bytes = generated(properties);
    let (rest, parsed) = parse_properties(&*bytes).expect("lapin reads what it writes");
    assert!(rest.is_empty());
    parsed
}

fn generated(properties: &BasicProperties) -> Vec<u8> {
    gen_properties(properties)(Vec::new().into()).expect("lapin writes into memory").write
}

fn assert_quotes_nothing(error: &DecodeError, input: &[u8]) {
    let reason = error.to_string();
    for excerpt in reason.as_bytes().windows(TELLING) {
        assert!(!input.windows(TELLING).any(|window| window == excerpt), "{reason}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/message");
        let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
        assert!(!seeds.is_empty());
        for seed in seeds {
            let path = seed.unwrap().path();
            println!("{}", path.display());
            super::message(&std::fs::read(path).unwrap());
        }
    }
}
