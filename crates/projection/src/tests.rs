use std::fs;
use std::sync::Arc;

use chrono::{TimeZone, Utc};
use domain_events::{
    EventId, EventType, Json, Position, SchemaVersion, StoredEvent, StreamId, StreamVersion,
};
use proptest::prelude::*;

use super::*;

const TABLES: &str = "CREATE TABLE orders (id VARCHAR(255) PRIMARY KEY)";

/// Writes a projection with the given files and loads it.
fn load(files: &[(&str, &str)]) -> Result<Projection, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("orders");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("projection.toml"), "categories = [\"order\"]\n").unwrap();
    fs::write(directory.join("tables.sql"), TABLES).unwrap();
    for (name, content) in files {
        fs::write(directory.join(name), content).unwrap();
    }
    let text = |fault: &Fault| {
        let file = fault.file.file_name().unwrap().to_string_lossy().into_owned();
        let line = fault.line.map(|line| format!(":{line}")).unwrap_or_default();
        format!("{file}{line}: {}", fault.reason)
    };
    load_all(folder.path(), &[], &[])
        .map(|mut projections| projections.remove(0))
        .map_err(|faults| faults.iter().map(text).collect())
}

fn statements(sql: &str) -> Vec<Statement> {
    load(&[("OrderPlaced.sql", sql)]).unwrap().statements().cloned().collect()
}

fn event(data: &str) -> StoredEvent {
    StoredEvent {
        event_id: EventId::parse("018f4e3a-0000-7000-8000-000000000001").unwrap(),
        event_type: EventType::new("OrderPlaced").unwrap(),
        schema_version: SchemaVersion::FIRST,
        stream_id: StreamId::new("order-1").unwrap(),
        version: StreamVersion::new(3).unwrap(),
        position: Position::new(42).unwrap(),
        data: Json::parse(data).unwrap(),
        metadata: Json::parse(r#"{"user": {"id": 7}}"#).unwrap(),
        occurred_at: Utc.with_ymd_and_hms(2026, 1, 31, 9, 30, 0).unwrap(),
        recorded_at: Utc.with_ymd_and_hms(2026, 1, 31, 9, 30, 1).unwrap(),
    }
}

fn bind(sql: &str, data: &str) -> Result<Vec<Value>, BindError> {
    statements(&format!("DELETE FROM orders WHERE {sql}"))[0].bind(&event(data))
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

#[test]
fn named_parameters_become_placeholders_and_nothing_else_changes() {
    let found = statements(
        "-- :not_a_parameter
         UPDATE orders SET note = ':data.x', `:y` = \"a\\\":z\", t = TIME('10:30'), /* :c */
                total = total + :data.total*2, j = data->>'$.a'
         WHERE id = :stream_id; -- the end
         ;
         DELETE FROM orders WHERE id=:stream_id",
    );
    assert_eq!(found.len(), 2);
    assert_eq!(
        &*found[0].sql,
        "UPDATE orders SET note = ':data.x', `:y` = \"a\\\":z\", t = TIME('10:30'), /* :c */
                total = total + ?*2, j = data->>'$.a'
         WHERE id = ?"
    );
    let names: Vec<_> = found[0].parameters.iter().map(ToString::to_string).collect();
    assert_eq!(names, [":data.total", ":stream_id"]);
    assert_eq!(found[0].line, 2);
    assert_eq!((&*found[1].sql, found[1].line), ("DELETE FROM orders WHERE id=?", 6));
}

#[test]
fn a_parameter_is_any_part_of_an_event() {
    let envelope = bind(
        "(:stream_id, :stream_version, :event_id, :event_type, :schema_version, :position) = 1",
        "{}",
    );
    let id = "018f4e3a-0000-7000-8000-000000000001";
    assert_eq!(
        envelope.unwrap(),
        [
            text("order-1"),
            Value::Integer(3),
            text(id),
            text("OrderPlaced"),
            Value::Integer(1),
            Value::Integer(42)
        ]
    );
    let time = Utc.with_ymd_and_hms(2026, 1, 31, 9, 30, 0).unwrap().naive_utc();
    assert_eq!(bind("t = :occurred_at", "{}").unwrap(), [Value::Time(time)]);
    let data = r#"{"customer": {"name": "Zoë"}, "lines": [{"price": 1}, {"price": 19.90}],
                   "odd key": true, "nothing": null}"#;
    for (parameter, value) in [
        (":data.customer.name", text("Zoë")),
        (":data.lines[1].price", Value::Decimal("19.90".parse().unwrap())),
        (":data.`odd key`", Value::Boolean(true)),
        (":data.nothing", Value::Null),
        (":data.missing?", Value::Null),
        (":data.customer.age?", Value::Null),
        (":data.lines[2]?", Value::Null),
        (":data.customer.name.first?", Value::Null),
        (":data.lines[0]", Value::Json(r#"{"price": 1}"#.to_owned())),
        (":data", Value::Json(data.to_owned())),
        (":metadata.user.id", Value::Integer(7)),
    ] {
        assert_eq!(bind(&format!("x = {parameter}"), data).unwrap(), [value], "{parameter}");
    }
}

#[test]
fn a_statement_may_be_long() {
    for (terms, batchable) in [(100, true), (100_000, false)] {
        let sum = "1 + ".repeat(terms);
        let sql = format!("UPDATE orders SET a = {sum} :data.a WHERE id = :stream_id");
        let found = statements(&sql);
        assert_eq!((found[0].parameters.len(), found[0].shape.is_ok()), (2, batchable));
    }
}

#[test]
fn comments_hold_no_parameters() {
    for comment in ["# :data.a", "-- :data.a", "/* :data.a */"] {
        assert_eq!(bind(&format!("x = 1 {comment}\n"), "{}").unwrap(), [], "{comment}");
    }
}

#[test]
fn an_error_names_the_parameter_and_not_the_value() {
    let error = bind("x = :data.customer.email", r#"{"customer": {"card": "4111"}}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the event has no :data.customer.email; write :data.customer.email? to use NULL instead"
    );
    let error = bind("x = :data.n", r#"{"n": 1e400}"#).unwrap_err().to_string();
    assert!(error.starts_with(":data.n is a number with more than 65 digits"), "{error}");
}

#[test]
fn every_mistake_has_its_file_line_and_reason() {
    for (name, content, expected) in [
        ("A.sql", "\n\nDROP TABLE orders", "A.sql:3: a handler can only INSERT, UPDATE, DELETE"),
        ("A.sql", "UPDATE orders SET a = 1;\nCOMMIT;", "A.sql:2: a handler can only INSERT"),
        (
            "A.sql",
            "DELETE FROM orders\nWHERE a = :x",
            "A.sql:2: unknown parameter :x; the parameters are",
        ),
        ("A.sql", "DELETE FROM orders WHERE a = ?", "A.sql:1: write a named parameter"),
        ("A.sql", "DELETE FROM orders WHERE a = :", "A.sql:1: expected a parameter name"),
        ("A.sql", "DELETE FROM orders WHERE a = :data.", "A.sql:1: expected a name after :data"),
        ("A.sql", "DELETE FROM orders WHERE a = :data[x]", "A.sql:1: expected an index such as"),
        ("A.sql", "DELETE FROM orders WHERE a = :stream_id?", "A.sql:1: only :data and :metadata"),
        ("A.sql", "DELETE FROM orders WHERE a = :event_id.x", "A.sql:1: only :data and :metadata"),
        ("A.sql", "UPDATE orders SET a = (@n := 1)", "A.sql:1: a user variable outlives"),
        ("A.sql", "UPDATE orders SET a = 'x", "A.sql:1: Unterminated string literal"),
        ("A.sql", "UPDATE orders SET /*!50000 a */ = 1", "A.sql:1: MySQL executes this comment"),
        ("A.sql", "-- nothing", "A.sql: the file has no statement"),
        ("A.sql", "UPDATE other.orders SET a = 1", "A.sql:1: other.orders is in another database"),
        ("A.sql", "DELETE FROM orders\nWHERE a = @x", "A.sql:2: a session variable outlives"),
        ("A.sql", "UPDATE orders SET a = GET_LOCK('x', 1)", "A.sql:1: GET_LOCK() reaches beyond"),
        ("A.sql", "UPDATE orders SET a = NOW()", "A.sql:1: NOW changes with every rebuild"),
        ("A.sql", "UPDATE orders SET a = CURRENT_DATE", "A.sql:1: CURRENT_DATE changes with"),
        (
            "A.sql",
            "-- projector: row = 1\nDELETE FROM orders",
            "A.sql:1: unknown directive row = 1",
        ),
        (
            "A.sql",
            "DELETE FROM orders; -- projector: rows = 1\nDELETE FROM orders",
            "A.sql:1: a directive must stand on its own line",
        ),
        (
            "A.sql",
            "-- projector: rows = 1\nINSERT INTO orders (id) VALUES (1)",
            "A.sql:2: an INSERT finds no rows",
        ),
        (
            "projection.toml",
            "categories = [\"a\"]\npartitions = 0",
            "projection.toml: partitions must",
        ),
        (
            "projection.toml",
            "categories = [\"a\"]\nlanes = 17",
            "projection.toml: lanes must be 1 to 16",
        ),
        ("A B.sql", "DELETE FROM orders", "A B.sql: an event type must be"),
        ("notes.txt", "", "notes.txt: unexpected file: a projection has"),
        ("projection.toml", "category = \"order\"", "projection.toml:1: unknown field `category`"),
        ("projection.toml", "categories = []", "projection.toml: categories is empty"),
        ("projection.toml", "\ncategories = 1", "projection.toml:2: invalid type"),
        ("projection.toml", "categories = [\"a-b\"]", "projection.toml: category \"a-b\": a cat"),
        ("tables.sql", "CREATE TABLE a.b (x INT)", "tables.sql:1: expected CREATE TABLE"),
        ("tables.sql", "\nDROP TABLE a", "tables.sql:2: expected CREATE TABLE"),
        (
            "tables.sql",
            "CREATE TABLE a__b (x INT)",
            "tables.sql:1: a__b is not a valid name for a table",
        ),
        ("tables.sql", "", "tables.sql: the file has no CREATE TABLE"),
    ] {
        let handler = ("OrderPlaced.sql", "DELETE FROM orders");
        let faults = load(&[handler, (name, content)]).unwrap_err();
        assert!(faults[0].starts_with(expected), "{content:?}: {faults:?}");
        assert_eq!(faults.len(), 1, "{content:?}: {faults:?}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let faults = load(&[("A.sql", "DROP TABLE a; COMMIT"), ("x.txt", "")]).unwrap_err();
    assert_eq!(faults.len(), 3, "{faults:?}");
}

#[test]
fn lookup_finds_the_highest_schema_version_up_to_that_of_the_event() {
    let sql = |n: u8| format!("DELETE FROM orders WHERE id = {n}");
    let projection = load(&[
        ("OrderPlaced.sql", &sql(1)),
        ("OrderPlaced.v3.sql", &sql(3)),
        ("OrderPaid.v2.sql", &sql(2)),
        ("order.placed.v1.sql", &sql(9)),
    ])
    .unwrap();
    let found = |name: &str, version| {
        let event_type = EventType::new(name).unwrap();
        match projection.lookup(&event_type, SchemaVersion::new(version).unwrap()) {
            Lookup::Found(handler) => handler.statements[0].sql.bytes().last().unwrap() - b'0',
            Lookup::Unhandled => 100,
            Lookup::UnknownSchema => 200,
        }
    };
    assert_eq!((1..=4).map(|v| found("OrderPlaced", v)).collect::<Vec<_>>(), [1, 1, 3, 200]);
    assert_eq!((1..=3).map(|v| found("OrderPaid", v)).collect::<Vec<_>>(), [200, 2, 200]);
    assert_eq!(found("OrderShipped", 1), 100);
    let with_default = load(&[("default.sql", &sql(7)), ("OrderPaid.sql", &sql(1))]).unwrap();
    let lookup = with_default.lookup(&EventType::new("Anything").unwrap(), SchemaVersion::FIRST);
    assert!(matches!(lookup, Lookup::Found(handler) if handler.statements[0].sql.ends_with('7')));
    let versions = |files: &[(&str, &str)]| {
        let (projection, kind) = (load(files).unwrap(), EventType::new("Anything").unwrap());
        let found = |version| {
            let version = SchemaVersion::new(version).unwrap();
            matches!(projection.lookup(&kind, version), Lookup::Found(_))
        };
        [1, 2, 3].map(found)
    };
    assert_eq!(versions(&[("default.sql", &sql(7))]), [true, false, false]);
    let both = [("default.sql", &*sql(7)), ("default.v2.sql", &*sql(8))];
    assert_eq!(versions(&both), [true, true, false]);
    // One file handles the type `order.placed.v1` and version 1 of the type `order.placed`.
    assert_eq!((found("order.placed.v1", 1), found("order.placed", 1)), (9, 9));
}

/// The files of a definition are kept as text. Parsed again, they give the same projection.
#[test]
fn kept_files_give_the_same_projection() {
    let read = load(&[("OrderPlaced.sql", "DELETE FROM orders WHERE id = :data.id")]).unwrap();
    let other = load(&[("OrderPaid.v2.sql", "DELETE FROM orders")]).unwrap();
    let again = other.with_files(&read.files, true, None).unwrap();
    assert_eq!(again.definition_hash, read.definition_hash);
    assert_eq!(again.tables_hash, read.tables_hash);
    let handlers = |projection: &Projection| {
        projection
            .handlers()
            .map(|(name, handler)| (name.clone(), handler.statements.len()))
            .collect::<Vec<_>>()
    };
    assert_eq!(handlers(&again), handlers(&read));
    // Strictness and order decide the content too.
    let changed = other.with_files(&read.files, false, Some(Order::Global)).unwrap();
    assert_eq!((changed.strict, changed.order), (false, Some(Order::Global)));
    assert_ne!(changed.definition_hash, read.definition_hash);
    let broken = [("tables.sql".to_owned(), "CREATE TABLE orders (id INT); COMMIT".to_owned())];
    let faults = other.with_files(&broken.into(), true, None).unwrap_err();
    assert!(faults.iter().any(|fault| fault.line == Some(1)), "{faults:?}");
}

#[test]
fn two_projections_cannot_define_the_same_table() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        let directory = folder.path().join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("projection.toml"), "categories = [\"order\"]\n").unwrap();
        fs::write(directory.join("tables.sql"), TABLES).unwrap();
        fs::write(directory.join("OrderPlaced.sql"), "DELETE FROM orders").unwrap();
    }
    let faults = load_all(folder.path(), &[], &[]).unwrap_err();
    assert_eq!(faults[0].reason, "projection one already defines table orders");
    let only = load_all(folder.path(), &["two".to_owned()], &[]).unwrap();
    assert_eq!(only[0].name, "two");
    let missing = load_all(folder.path(), &["three".to_owned()], &[]).unwrap_err();
    assert_eq!(missing[0].reason, "there is no projection three");
}

#[test]
fn a_directive_applies_to_the_statement_after_it() {
    let found = statements(
        "-- projector: rows = 1
         UPDATE orders SET a = 1 WHERE id = :stream_id;
         -- Why: projector: rows = 5
         /* projector: one by one */
         DELETE FROM orders WHERE id = :stream_id",
    );
    let read: Vec<_> = found.iter().map(|it| (it.rows, it.shape.is_ok())).collect();
    assert_eq!(read, [(Some(1), true), (None, false)]);
}

proptest! {
    /// Any text of a handler's file is either accepted or refused.
    #[test]
    fn no_text_makes_a_handler_panic(sql in any::<String>()) {
        drop(statement::handler(&Arc::from(std::path::Path::new("A.sql")), &sql, &[]));
        let likely = format!("UPDATE t SET a = :data{sql}");
        drop(statement::handler(&Arc::from(std::path::Path::new("A.sql")), &likely, &[]));
    }

    /// A path finds its value beside any other text.
    #[test]
    fn a_path_finds_its_value(
        keys in proptest::collection::vec("[a-z][a-z0-9_]{0,8}", 1..5), number in any::<i64>(),
        noise in any::<String>(),
    ) {
        let mut data = number.to_string();
        for key in keys.iter().rev() {
            let noise = serde_json::to_string(&noise).unwrap();
            data = format!("{{\"{key}\": {data}, \"NOISE\": {noise}}}");
        }
        let value = bind(&format!("a = ':x' AND b = :data.{}", keys.join(".")), &data);
        prop_assert_eq!(value, Ok(vec![Value::Integer(number)]));
    }
}
