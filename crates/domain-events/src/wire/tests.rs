use chrono::TimeZone;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn event() -> Event {
    Event {
        event_id: EventId::parse("018f4e3a-0000-7000-8000-000000000001").unwrap(),
        event_type: EventType::new("OrderPlaced").unwrap(),
        schema_version: SchemaVersion::FIRST,
        origin: Origin::Stream {
            stream_id: StreamId::new("order-1").unwrap(),
            version: StreamVersion::new(3).unwrap(),
            position: Some(Position::new(42).unwrap()),
        },
        data: Json::parse(r#"{"total": 19.90}"#).unwrap(),
        metadata: Json::parse(r#"{"correlation_id": "c-1", "traceparent": "00-ab-cd-01"}"#)
            .unwrap(),
        occurred_at: Utc.with_ymd_and_hms(2026, 1, 31, 9, 30, 0).unwrap(),
        recorded_at: Utc.timestamp_micros(1_769_851_800_123_456).unwrap(),
    }
}

fn message() -> Message {
    Message::encode(event(), "order.OrderPlaced".to_owned())
}

/// Other consumers of the exchange rely on this format. A change breaks them.
#[test]
fn the_form_on_the_wire_is_a_contract() {
    let message = message();
    assert_eq!(message.routing_key, "order.OrderPlaced");
    assert_eq!(message.message_id.as_deref(), Some("018f4e3a-0000-7000-8000-000000000001"));
    assert_eq!(message.message_type.as_deref(), Some("OrderPlaced"));
    assert_eq!(message.timestamp, Some(1_769_851_800));
    assert_eq!(message.content_type.as_deref(), Some("application/json"));
    assert_eq!(message.correlation_id.as_deref(), Some("c-1"));
    assert_eq!(message.body, br#"{"total": 19.90}"#);
    let text = |text: &str| HeaderValue::Text(text.to_owned());
    let expected = [
        ("metadata", text(r#"{"correlation_id": "c-1", "traceparent": "00-ab-cd-01"}"#)),
        ("occurred_at", text("2026-01-31T09:30:00.000000Z")),
        ("position", HeaderValue::Integer(42)),
        ("recorded_at", text("2026-01-31T09:30:00.123456Z")),
        ("schema_version", HeaderValue::Integer(1)),
        ("stream_id", text("order-1")),
        ("stream_version", HeaderValue::Integer(3)),
        ("traceparent", text("00-ab-cd-01")),
    ];
    let headers: Vec<_> = message.headers.iter().map(|(n, v)| (&**n, v.clone())).collect();
    assert_eq!(headers, expected);
}

#[test]
fn each_fault_of_a_message_has_its_reason() {
    type Fault = fn(&mut Message);
    let number = |m: &mut Message, name: &'static str, n| {
        m.headers.insert(name.into(), HeaderValue::Integer(n));
    };
    let faults: [(&str, Fault); 14] = [
        ("message_id is missing", |m| m.message_id = None),
        ("message_id: an event id must be a UUID", |m| m.message_id = Some("7".into())),
        ("type is missing", |m| m.message_type = None),
        ("type: an event type must be", |m| m.message_type = Some("a b".into())),
        ("content type is not application/json", |m| m.content_type = None),
        ("content type is not application/json", |m| m.content_encoding = Some("gzip".into())),
        ("header stream_version is there, but stream_id", |m| drop(m.headers.remove("stream_id"))),
        ("header stream_version is not an integer", |m| {
            m.headers.insert("stream_version".into(), HeaderValue::Text("3".into()));
        }),
        ("header stream_id is not text", |m| {
            m.headers.insert("stream_id".into(), HeaderValue::Other);
        }),
        ("schema_version is missing", |m| drop(m.headers.remove("schema_version"))),
        ("header occurred_at is not a time", |m| {
            m.headers.insert("occurred_at".into(), HeaderValue::Text("yesterday".into()));
        }),
        ("header metadata is not a JSON object", |m| {
            m.headers.insert("metadata".into(), HeaderValue::Text("[]".into()));
        }),
        ("the body is not UTF-8", |m| m.body = vec![0xff]),
        ("the body is not valid JSON at line 1", |m| m.body = b"{".to_vec()),
    ];
    for (reason, fault) in faults {
        let mut message = message();
        fault(&mut message);
        let error = message.decode().unwrap_err().to_string();
        assert!(error.starts_with(reason), "{error:?} should start with {reason:?}");
    }
    for (name, n) in [("stream_version", 0), ("position", -1), ("schema_version", 0)] {
        let mut message = message();
        number(&mut message, name, n);
        assert!(
            matches!(message.decode(), Err(DecodeError::Invalid { field, .. }) if field == name)
        );
    }
}

#[test]
fn valid_json_without_our_headers_is_not_an_event() {
    let foreign = Message { body: b"{\"a\":1}".to_vec(), ..Message::default() };
    assert_eq!(foreign.decode(), Err(DecodeError::Missing("message_id")));
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|v| format!("[{}]", v.join(","))),
            object(inner),
        ]
    })
    .prop_map(|text| Json::parse(text).unwrap())
}

fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    proptest::collection::vec((any::<String>(), value), 0..4).prop_map(|fields| {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{}: {value}", serde_json::to_string(name).unwrap()))
            .collect();
        format!("{{{}}}", fields.join(", "))
    })
}

fn origin() -> impl Strategy<Value = Origin> {
    let stream = "[a-z]{1,8}-[a-zA-Z0-9äé漢 _.-]{0,20}";
    let stream = stream.prop_map(|text| StreamId::new(text).unwrap());
    let versioned = (stream.clone(), 1..=i64::MAX, proptest::option::of(0..=i64::MAX)).prop_map(
        |(stream_id, version, position)| Origin::Stream {
            stream_id,
            version: StreamVersion::new(version).unwrap(),
            position: position.map(|n| Position::new(n).unwrap()),
        },
    );
    let unversioned =
        proptest::option::of(stream).prop_map(|stream_id| Origin::Unversioned { stream_id });
    prop_oneof![3 => versioned, 1 => unversioned]
}

fn time() -> impl Strategy<Value = DateTime<Utc>> {
    // From the year 1 to the end of the year 9999.
    (-62_135_596_800_000_000..=253_402_300_799_999_999_i64)
        .prop_map(|micros| Utc.timestamp_micros(micros).unwrap())
}

fn any_event() -> impl Strategy<Value = Event> {
    let metadata = object(json().prop_map(|j| j.as_str().to_owned()))
        .prop_map(|text| Json::parse(if text == "{}" { "{}".into() } else { text }).unwrap());
    (1..=u128::MAX, "[A-Za-z0-9_ß][A-Za-z0-9_.:-]{0,60}", 1..=i32::MAX, origin(), json(), metadata)
        .prop_flat_map(|(id, kind, schema, origin, data, metadata)| {
            (time(), time()).prop_map(move |(occurred_at, recorded_at)| Event {
                event_id: EventId::new(Uuid::from_u128(id)).unwrap(),
                event_type: EventType::new(kind.as_str()).unwrap(),
                schema_version: SchemaVersion::new(schema.into()).unwrap(),
                origin: origin.clone(),
                data: data.clone(),
                metadata: metadata.clone(),
                occurred_at,
                recorded_at,
            })
        })
}

fn any_header() -> impl Strategy<Value = HeaderValue> {
    prop_oneof![
        any::<String>().prop_map(HeaderValue::Text),
        any::<i64>().prop_map(HeaderValue::Integer),
        Just(HeaderValue::Other),
    ]
}

proptest! {
    #[test]
    fn decoding_gives_back_what_was_encoded(event in any_event()) {
        let decoded = Message::encode(event.clone(), "some.key".to_owned()).decode();
        prop_assert_eq!(decoded, Ok(event));
    }

    #[test]
    fn no_message_makes_decoding_panic(
        id in any::<Option<String>>(),
        kind in any::<Option<String>>(),
        headers in proptest::collection::btree_map(
            prop_oneof![
                Just(header::STREAM_ID), Just(header::STREAM_VERSION), Just(header::POSITION),
                Just(header::SCHEMA_VERSION), Just(header::OCCURRED_AT), Just(header::METADATA),
            ].prop_map(str::to_owned),
            any_header(), 0..6),
        body in any::<Vec<u8>>(),
    ) {
        let mut altered = message();
        altered.headers.extend(headers.into_iter().map(|(name, value)| (name.into(), value)));
        altered.body = body;
        if let Some(id) = id { altered.message_id = Some(id); }
        if let Some(kind) = kind { altered.message_type = Some(kind); }
        drop(altered.decode());
    }
}
