//! Compares the read models with the event store, which is the truth.
//!
//! An event can be lost, doubled, inverted (applied after a later one), skipped (passed by a later one), or a
//! phantom that nobody committed: see `findings.rs`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

use sha2::{Digest, Sha256};
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::findings::{Findings, Wrong};
use crate::writers::{LIGHT, TOO_LARGE};

/// The parts of an event that the read models depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: Uuid,
    pub(crate) version: i64,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Moved {
        bucket: String,
        cents: i128,
    },
    Named {
        name: String,
    },
    Placed {
        customer_id: String,
    },
    /// An event of a fragile stream; a poison event cannot be applied.
    Weighed {
        poison: bool,
    },
}

impl Event {
    fn is_poison(&self) -> bool {
        self.what == What::Weighed { poison: true }
    }
}

/// All events of each stream, in order.
pub(crate) type Streams = HashMap<String, Vec<Event>>;

/// What the read model `ledger` has of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) count: i64,
    pub(crate) last_version: i64,
    pub(crate) breaks: i64,
    pub(crate) cents: i128,
    /// By version: the event and how often it was applied.
    pub(crate) versions: BTreeMap<i64, (Uuid, i64)>,
}

/// Compares the applied events of one stream with its events in the store.
pub(crate) fn compare_stream(
    stream: &str,
    events: &[Event],
    applied: &Applied,
    findings: &mut Findings,
) {
    let before = findings.total();
    let last = applied.versions.keys().next_back().copied().unwrap_or(0);
    for event in events {
        let version = event.version;
        match applied.versions.get(&version) {
            None if version > last => {
                findings.add(Wrong::Lost, || format!("{stream} version {version}"));
            }
            None => findings.add(Wrong::Skipped, || format!("{stream} version {version}")),
            Some((id, _)) if *id != event.id => {
                findings.add(Wrong::Phantom, || format!("{stream} version {version}: {id}"));
            }
            Some((_, 1)) => {}
            Some((_, times)) => {
                findings
                    .add(Wrong::Doubled, || format!("{stream} version {version}, {times} times"));
            }
        }
    }
    let known: HashSet<i64> = events.iter().map(|event| event.version).collect();
    for version in applied.versions.keys().filter(|version| !known.contains(version)) {
        findings.add(Wrong::Phantom, || format!("{stream} version {version}"));
    }
    if before != findings.total() {
        return;
    }
    if applied.breaks > 0 {
        findings.add(Wrong::Inverted, || format!("{stream}, {} times", applied.breaks));
    }
    let expected = (events.len(), events.last().map_or(0, |event| event.version), cents(events));
    let found = (usize::try_from(applied.count).unwrap_or(0), applied.last_version, applied.cents);
    if expected != found {
        findings.add(Wrong::Differs, || format!("{stream}: {found:?} instead of {expected:?}"));
    }
}

fn count(events: &[Event]) -> i64 {
    i64::try_from(events.len()).unwrap_or(i64::MAX)
}

fn cents(events: &[Event]) -> i128 {
    let moved = |event: &Event| if let What::Moved { cents, .. } = event.what { cents } else { 0 };
    events.iter().map(moved).sum()
}

/// The running hash over a stream.
pub(crate) fn chain(events: &[Event]) -> String {
    let mut hash = String::new();
    for Event { id, version, .. } in events {
        let digest = Sha256::digest(format!("{hash}:{version}:{id}"));
        hash.clear();
        for byte in digest {
            write!(hash, "{byte:02x}").expect("text takes text");
        }
    }
    hash
}

/// The cents of a number with two decimal places.
pub(crate) fn parse_cents(text: &str) -> i128 {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let whole: i128 = whole.parse().unwrap_or_default();
    whole * 100 + format!("{part:0<2}").parse::<i128>().unwrap_or_default()
}

/// Compares two read models, row by row.
fn compare_rows<V: PartialEq + std::fmt::Debug>(
    model: &str,
    expected: &BTreeMap<String, V>,
    found: &BTreeMap<String, V>,
    findings: &mut Findings,
) {
    let keys: HashSet<&String> = expected.keys().chain(found.keys()).collect();
    for key in keys {
        let (expected, found) = (expected.get(key), found.get(key));
        if expected != found {
            findings.add(Wrong::Differs, || format!("{model} {key}: {found:?}, not {expected:?}"));
        }
    }
}

/// Stream, version, id, type, the one text of the payload, the amount.
type EventRow = (String, i64, Uuid, String, Option<String>, Option<String>);

/// Reads all events of the event store.
pub(crate) async fn read_streams(connection: &mut PgConnection) -> Result<Streams, sqlx::Error> {
    let rows: Vec<EventRow> = sqlx::query_as(
        "SELECT stream_id, stream_version::bigint, event_id, event_type,
                COALESCE(data->>'bucket', data->>'name', data->>'customer_id'), data->>'amount'
         FROM events ORDER BY stream_id, stream_version",
    )
    .fetch_all(connection)
    .await?;
    let mut streams = Streams::new();
    for (stream, version, id, event_type, text, amount) in rows {
        let text = text.unwrap_or_default();
        let what = match event_type.as_str() {
            "Moved" => {
                What::Moved { bucket: text, cents: parse_cents(&amount.unwrap_or_default()) }
            }
            "CustomerNamed" => What::Named { name: text },
            "Weighed" => What::Weighed { poison: amount.as_deref() == Some(TOO_LARGE) },
            _ => What::Placed { customer_id: text },
        };
        streams.entry(stream).or_default().push(Event { id, version, what });
    }
    Ok(streams)
}

/// Compares all read models with a sequential fold of the streams.
pub(crate) async fn compare(
    streams: &Streams,
    connection: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    compare_ledger(streams, connection, findings).await?;
    let accounts = || streams.iter().filter(|(stream, _)| stream.starts_with("account-"));

    let expected: BTreeMap<String, (i64, String)> = accounts()
        .map(|(stream, events)| (stream.clone(), (count(events), chain(events))))
        .collect();
    let rows: Vec<(String, i64, String)> =
        sqlx::query_as("SELECT stream_id, applied, hash FROM chain")
            .fetch_all(&mut *connection)
            .await?;
    let found = rows.into_iter().map(|(stream, applied, hash)| (stream, (applied, hash))).collect();
    compare_rows("chain", &expected, &found, findings);

    let mut expected: BTreeMap<String, (i64, i128)> = BTreeMap::new();
    for event in accounts().flat_map(|(_, events)| events) {
        if let What::Moved { bucket, cents } = &event.what {
            let row = expected.entry(bucket.clone()).or_default();
            *row = (row.0 + 1, row.1 + cents);
        }
    }
    let rows: Vec<(String, i64, String)> =
        sqlx::query_as("SELECT bucket, events, CAST(total AS CHAR) FROM counter")
            .fetch_all(&mut *connection)
            .await?;
    let found =
        rows.into_iter().map(|(key, events, total)| (key, (events, parse_cents(&total)))).collect();
    compare_rows("counter", &expected, &found, findings);
    compare_contacts(streams, connection, findings).await?;
    compare_fragile(streams, connection, findings).await
}

/// Compares `fragile`: a stream must stop at its first poison event.
async fn compare_fragile(
    streams: &Streams,
    connection: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let mut expected: BTreeMap<String, (i64, i64, String)> = BTreeMap::new();
    for (stream, events) in streams.iter().filter(|(stream, _)| is_fragile(stream)) {
        let whole = events.iter().position(Event::is_poison).unwrap_or(events.len());
        if let Some(last) = events[..whole].last() {
            let row = (count(&events[..whole]), last.version, LIGHT.to_owned());
            expected.insert(stream.clone(), row);
        }
    }
    let rows: Vec<(String, i64, i64, String)> = sqlx::query_as(
        "SELECT stream_id, applied, last_version, CAST(amount AS CHAR) FROM fragile",
    )
    .fetch_all(&mut *connection)
    .await?;
    let found = rows
        .into_iter()
        .map(|(stream, applied, last, amount)| (stream, (applied, last, amount)))
        .collect();
    compare_rows("fragile", &expected, &found, findings);
    let parked: Vec<String> =
        sqlx::query_scalar("SELECT stream_id FROM fragile__streams WHERE parked")
            .fetch_all(connection)
            .await?;
    compare_parked(streams, &parked.into_iter().collect(), findings);
    Ok(())
}

fn is_fragile(stream: &str) -> bool {
    stream.starts_with("fragile-")
}

/// Checks that the streams with a poison event are parked, and no others.
fn compare_parked(streams: &Streams, parked: &HashSet<String>, findings: &mut Findings) {
    for stream in parked {
        if !streams.get(stream).is_some_and(|events| events.iter().any(Event::is_poison)) {
            findings.add(Wrong::GivenUp, || format!("{stream} is parked"));
        }
    }
    for (stream, poison) in poisoned(streams).filter(|(stream, _)| !parked.contains(*stream)) {
        findings.add(Wrong::PassedOver, || format!("{stream} version {}", poison.version));
    }
}

/// The streams with a poison event, each with the first such event.
pub(crate) fn poisoned(streams: &Streams) -> impl Iterator<Item = (&String, &Event)> {
    let first = |events: &'_ [Event]| events.iter().position(Event::is_poison);
    streams.iter().filter_map(move |(stream, events)| Some((stream, &events[first(events)?])))
}

async fn compare_ledger(
    streams: &Streams,
    connection: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let mut applied: HashMap<String, Applied> = HashMap::new();
    let rows: Vec<(String, i64, i64, i64, String)> = sqlx::query_as(
        "SELECT stream_id, applied, last_version, breaks, CAST(total AS CHAR) FROM ledger_streams",
    )
    .fetch_all(&mut *connection)
    .await?;
    for (stream, count, last_version, breaks, total) in rows {
        let cents = parse_cents(&total);
        let row = Applied { count, last_version, breaks, cents, versions: BTreeMap::new() };
        applied.insert(stream, row);
    }
    let rows: Vec<(String, i64, String, i64)> =
        sqlx::query_as("SELECT stream_id, version, event_id, times FROM ledger_versions")
            .fetch_all(&mut *connection)
            .await?;
    for (stream, version, id, times) in rows {
        let id = Uuid::parse_str(&id).unwrap_or_default();
        applied.entry(stream).or_default().versions.insert(version, (id, times));
    }
    let none = Applied::default();
    for (stream, events) in streams.iter().filter(|(stream, _)| !is_fragile(stream)) {
        compare_stream(stream, events, applied.get(stream).unwrap_or(&none), findings);
    }
    for stream in applied.keys().filter(|stream| !streams.contains_key(*stream)) {
        findings.add(Wrong::Phantom, || stream.clone());
    }
    Ok(())
}

async fn compare_contacts(
    streams: &Streams,
    connection: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let last_name = |customer: &str| match &streams.get(customer)?.last()?.what {
        What::Named { name } => Some(name.clone()),
        _ => None,
    };
    let mut expected: BTreeMap<String, (String, Option<String>)> = BTreeMap::new();
    for (stream, events) in streams {
        if let What::Placed { customer_id } = &events[0].what {
            expected.insert(stream.clone(), (customer_id.clone(), last_name(customer_id)));
        }
    }
    let rows: Vec<(String, String, Option<String>)> =
        sqlx::query_as("SELECT order_id, customer_id, name FROM order_contacts")
            .fetch_all(&mut *connection)
            .await?;
    let found = rows.into_iter().map(|(order, customer, name)| (order, (customer, name))).collect();
    compare_rows("contacts", &expected, &found, findings);

    let customers = streams.keys().filter(|stream| stream.starts_with("customer-"));
    let expected: BTreeMap<String, String> =
        customers.filter_map(|stream| Some((stream.clone(), last_name(stream)?))).collect();
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT customer_id, name FROM contact_names").fetch_all(connection).await?;
    compare_rows("names", &expected, &rows.into_iter().collect(), findings);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(count: i64) -> Vec<Event> {
        let what = || What::Moved { bucket: "b00".to_owned(), cents: 150 };
        (1..=count)
            .map(|version| Event {
                id: Uuid::from_u128(version.cast_unsigned().into()),
                version,
                what: what(),
            })
            .collect()
    }

    fn applied(events: &[Event]) -> Applied {
        Applied {
            count: count(events),
            last_version: events.last().unwrap().version,
            breaks: 0,
            cents: cents(events),
            versions: events.iter().map(|event| (event.version, (event.id, 1))).collect(),
        }
    }

    fn wrongs(events: &[Event], applied: &Applied) -> Vec<(Wrong, u64)> {
        let mut findings = Findings::default();
        compare_stream("account-1", events, applied, &mut findings);
        findings.iter().map(|(wrong, count, _)| (wrong, count)).collect()
    }

    #[test]
    fn each_kind_of_error_has_its_own_name() {
        let events = events(4);
        let right = applied(&events);
        assert_eq!(wrongs(&events, &right), []);

        let lost = applied(&events[..2]);
        assert_eq!(wrongs(&events, &lost), [(Wrong::Lost, 2)]);

        let mut skipped = right.clone();
        skipped.versions.remove(&2);
        assert_eq!(wrongs(&events, &skipped), [(Wrong::Skipped, 1)]);

        let mut doubled = right.clone();
        doubled.versions.get_mut(&3).unwrap().1 = 2;
        assert_eq!(wrongs(&events, &doubled), [(Wrong::Doubled, 1)]);

        let inverted = Applied { breaks: 2, ..right.clone() };
        assert_eq!(wrongs(&events, &inverted), [(Wrong::Inverted, 1)]);

        let mut phantom = right.clone();
        phantom.versions.insert(5, (Uuid::nil(), 1));
        assert_eq!(wrongs(&events, &phantom), [(Wrong::Phantom, 1)]);

        let poor = Applied { cents: 599, ..right };
        assert_eq!(wrongs(&events, &poor), [(Wrong::Differs, 1)]);
    }

    #[test]
    fn a_stream_is_parked_for_a_poison_event_and_for_nothing_else() {
        let poisoned = |poison| {
            let mut some = events(2);
            some[1].what = What::Weighed { poison };
            some
        };
        let streams: Streams =
            [("fragile-1", true), ("fragile-2", false), ("fragile-3", true), ("fragile-4", false)]
                .map(|(stream, poison)| (stream.to_owned(), poisoned(poison)))
                .into();
        let mut findings = Findings::default();
        let parked = ["fragile-1", "fragile-2"].map(str::to_owned).into();
        compare_parked(&streams, &parked, &mut findings);
        let found: Vec<_> = findings.iter().map(|(wrong, _, examples)| (wrong, examples)).collect();
        assert_eq!(
            found,
            [
                (Wrong::PassedOver, &["fragile-3 version 2".to_owned()][..]),
                (Wrong::GivenUp, &["fragile-2 is parked".to_owned()][..]),
            ]
        );
    }

    #[test]
    fn a_chain_depends_on_every_event_and_their_order() {
        let mut some = events(3);
        let right = chain(&some);
        some.swap(0, 1);
        assert_ne!(chain(&some), right);
        some.swap(0, 1);
        some.pop();
        assert_ne!(chain(&some), right);
    }

    #[test]
    fn cents_are_exact() {
        assert_eq!(parse_cents("9007199254740993.01"), 900_719_925_474_099_301);
        assert_eq!(parse_cents("0.50"), 50);
        assert_eq!(parse_cents("0.5"), 50);
        assert_eq!(parse_cents("7"), 700);
    }
}
