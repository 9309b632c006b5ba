//! Reads projections from their directories.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use domain_events::{Category, EventType, SchemaVersion};
use serde::Deserialize;
use sqlparser::tokenizer::Token;

use crate::Fault;
use crate::definition::{Handler, Handlers, Order, Projection, Table};
use crate::sources::{Source, definition_hash, hash, sources, texts};
use crate::statement::{handler, parse, split};
use crate::tokens::Placed;

/// `projection.toml`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    /// The categories whose streams the projection follows.
    categories: Vec<String>,
    /// The number of queues that share its events.
    #[serde(default = "one")]
    partitions: u16,
    /// The number of transactions that may run in parallel for one queue.
    #[serde(default = "two")]
    lanes: u16,
    /// Whether an event is refused whose value MySQL would change to fit a column.
    #[serde(default = "yes")]
    strict: bool,
    /// The order of events that it needs.
    order: Option<Order>,
}

fn one() -> u16 {
    1
}

fn two() -> u16 {
    2
}

fn yes() -> bool {
    true
}

/// Each partition costs a queue and a consumer on every instance.
const PARTITIONS_MAX: u16 = 64;
/// Each lane costs a MySQL connection for every partition.
const LANES_MAX: u16 = 16;
pub(crate) const DEFINITION: &str = "projection.toml";
pub(crate) const TABLES: &str = "tables.sql";
/// Authors may describe a projection in its directory.
pub(crate) const IGNORED: &str = "README.md";
/// In bytes. MySQL allows 64 characters for a table name, and the bookkeeping tables are named
/// `<projection>__checkpoint` and similar.
const NAME_MAX: usize = 48;

/// Reads the projections in `folder`: all of them, or those in `names` if it is not empty. `in_rust` lists
/// the projections that a Rust type implements.
///
/// # Errors
///
/// Every mistake in every file.
pub fn load_all(
    folder: &Path,
    names: &[String],
    in_rust: &[String],
) -> Result<Vec<Projection>, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut directories = entries(folder).map_err(|fault| vec![fault])?;
    directories.retain(|path| path.is_dir());
    for name in names {
        if !directories.iter().any(|path| file_name(path) == *name) {
            faults.push(fault(folder, None, &format!("there is no projection {name}")));
        }
    }
    directories.retain(|path| names.is_empty() || names.contains(&file_name(path)));
    if directories.is_empty() && faults.is_empty() {
        faults.push(fault(
            folder,
            None,
            "the directory contains no projection: each projection is a subdirectory",
        ));
    }
    let mut projections = Vec::new();
    for directory in directories {
        match load(&directory, in_rust) {
            Ok(projection) => projections.push(projection),
            Err(found) => faults.extend(found),
        }
    }
    faults.extend(shared_tables(&projections));
    if faults.is_empty() { Ok(projections) } else { Err(faults) }
}

/// Reads one projection.
fn load(directory: &Path, in_rust: &[String]) -> Result<Projection, Vec<Fault>> {
    let name = file_name(directory);
    let sources = sources(directory).map_err(|fault| vec![fault])?;
    let mut faults = Vec::new();
    if !is_name(&name) {
        let reason = format!(
            "{name} is not a valid name for a projection: use at most {NAME_MAX} lower-case letters, \
             digits and single underscores, starting with a letter"
        );
        faults.push(fault(directory, None, &reason));
    }
    let mut keep = |found: Vec<Fault>| faults.extend(found);
    let definition = definition(&directory.join(DEFINITION)).unwrap_or_else(|found| {
        keep(found);
        (Vec::new(), one(), one(), yes(), None)
    });
    let (tables, tables_hash) = tables(directory, &sources).unwrap_or_else(|found| {
        keep(found);
        (Vec::new(), String::new())
    });
    let handlers = handlers(directory, &sources, &tables).unwrap_or_else(|found| {
        keep(found);
        Handlers::new()
    });
    let is_rust = in_rust.contains(&name);
    match (handlers.is_empty(), is_rust) {
        (true, false) if faults.is_empty() => {
            let reason = "the projection has no handler: add <EventType>.sql";
            faults.push(fault(directory, None, reason));
        }
        (false, true) => {
            let reason =
                "a Rust type implements this projection: remove its .sql files except tables.sql";
            faults.push(fault(directory, None, reason));
        }
        _ => {}
    }
    if faults.is_empty() {
        let (categories, partitions, lanes, strict, order) = definition;
        let files = texts(&sources)?;
        let definition_hash = definition_hash(&files, strict, order);
        Ok(Projection {
            name,
            categories,
            partitions,
            lanes,
            strict,
            order,
            tables,
            tables_hash,
            definition_hash,
            files,
            handlers,
            is_rust,
        })
    } else {
        Err(faults)
    }
}

/// The categories, partitions, lanes, strictness and order of a projection.
type Keys = (Vec<Category>, u16, u16, bool, Option<Order>);

fn definition(file: &Path) -> Result<Keys, Vec<Fault>> {
    let text = read(file)?;
    let definition: Definition = toml::from_str(&text).map_err(|error| {
        let line = error.span().map(|span| line_of(&text, span.start));
        vec![fault(file, line, error.message())]
    })?;
    if definition.categories.is_empty() {
        return Err(vec![fault(file, None, "categories is empty: name at least one category")]);
    }
    for (key, number, max) in [
        ("partitions", definition.partitions, PARTITIONS_MAX),
        ("lanes", definition.lanes, LANES_MAX),
    ] {
        if !(1..=max).contains(&number) {
            return Err(vec![fault(file, None, &format!("{key} must be 1 to {max}"))]);
        }
    }
    let category = |text: String| {
        let given = text.clone();
        Category::new(text)
            .map_err(|error| vec![fault(file, None, &format!("category {given:?}: {error}"))])
    };
    let categories =
        definition.categories.iter().cloned().map(category).collect::<Result<_, _>>()?;
    let Definition { partitions, lanes, strict, order, .. } = definition;
    Ok((categories, partitions, lanes, strict, order))
}

pub(crate) fn tables(
    directory: &Path,
    sources: &[Source],
) -> Result<(Vec<Table>, String), Vec<Fault>> {
    let file = &directory.join(TABLES);
    let sql = match sources.iter().find(|source| source.name == TABLES) {
        Some(source) => source.text.clone()?,
        None => read(file)?,
    };
    let shared: Arc<Path> = Arc::from(&**file);
    let mut faults = Vec::new();
    let mut tables = Vec::new();
    for tokens in split(&shared, &sql)? {
        let line = tokens.iter().find(|placed| !placed.is_space()).map_or(1, |placed| placed.line);
        let Some(name) = created_table(&tokens) else {
            let reason = "expected CREATE TABLE and a table name without a database: tables.sql may \
                          contain nothing else";
            faults.push(fault(file, Some(line), reason));
            continue;
        };
        if !is_name(&name) {
            let reason = format!(
                "{name} is not a valid name for a table: use at most {NAME_MAX} lower-case letters, digits \
                 and single underscores, starting with a letter"
            );
            faults.push(fault(file, Some(line), &reason));
        }
        if copies(&tokens) {
            let reason = "CREATE TABLE … LIKE and … SELECT copy another table: write the columns";
            faults.push(fault(file, Some(line), reason));
            continue;
        }
        match parse(&shared, &sql, &tokens, line, &[]) {
            Ok(create) if create.parameters.is_empty() => tables.push(Table { name, create }),
            Ok(_) => faults.push(fault(file, Some(line), "CREATE TABLE cannot have parameters")),
            Err(found) => faults.extend(found),
        }
    }
    if tables.is_empty() && faults.is_empty() {
        faults.push(fault(file, None, "the file has no CREATE TABLE"));
    }
    if faults.is_empty() { Ok((tables, hash(&sql))) } else { Err(faults) }
}

/// The table that `CREATE TABLE [IF NOT EXISTS] name` creates.
fn created_table(tokens: &[Placed]) -> Option<String> {
    let mut solid = tokens.iter().filter(|placed| !placed.is_space()).peekable();
    let mut expect = |word: &str| solid.next_if(|placed| placed.keyword().as_deref() == Some(word));
    expect("CREATE")?;
    expect("TABLE")?;
    if expect("IF").is_some() {
        expect("NOT")?;
        expect("EXISTS")?;
    }
    let name = solid.next()?.name()?.to_owned();
    let qualified = solid.next()?.token == Token::Period;
    (!qualified).then_some(name)
}

/// Whether `CREATE TABLE` takes its columns or rows from another table.
fn copies(tokens: &[Placed]) -> bool {
    let solid: Vec<&Placed> = tokens.iter().filter(|placed| !placed.is_space()).collect();
    let is = |index: usize, word: &str| {
        solid.get(index).and_then(|placed| placed.keyword()).as_deref() == Some(word)
    };
    let name = if is(2, "IF") { 5 } else { 2 };
    let parenthesis = solid.get(name + 1).is_some_and(|it| it.token == Token::LParen);
    let like = is(name + 1, "LIKE") || (parenthesis && is(name + 2, "LIKE"));
    like || (0..solid.len()).any(|index| is(index, "SELECT"))
}

pub(crate) fn handlers(
    directory: &Path,
    sources: &[Source],
    tables: &[Table],
) -> Result<Handlers, Vec<Fault>> {
    let own: Vec<&str> = tables.iter().map(|table| &*table.name).collect();
    let mut faults = Vec::new();
    let mut handlers = Handlers::new();
    let mut count = 0;
    for Source { name, text } in sources.iter().filter(|source| source.name != TABLES) {
        let file = directory.join(name);
        let Some(stem) = name.strip_suffix(".sql").filter(|_| !file.is_dir()) else {
            let reason = "unexpected file: a projection has projection.toml, tables.sql and one .sql \
                          file for each event type";
            faults.push(fault(&file, None, reason));
            continue;
        };
        if stem.rsplit_once(".v").is_some_and(|(_, digits)| digits == "0") {
            faults.push(fault(&file, None, "schema versions begin at 1"));
            continue;
        }
        let parsed = text.clone().and_then(|sql| handler(&Arc::from(&*file), &sql, &own));
        let mut statements = match parsed {
            Ok(statements) => statements,
            Err(found) => {
                faults.extend(found);
                continue;
            }
        };
        for statement in &mut statements {
            statement.id = count;
            count += 1;
        }
        let handler = Arc::new(Handler { statements });
        for (event_type, version) in handled(stem) {
            let taken =
                EventType::new(event_type).map_err(|error| error.to_string()).and_then(|_| {
                    let versions: &mut BTreeMap<_, _> =
                        handlers.entry(event_type.to_owned()).or_default();
                    match versions.insert(version, Arc::clone(&handler)) {
                        None => Ok(()),
                        Some(_) => Err(format!(
                            "two files handle schema version {version} of {event_type}"
                        )),
                    }
                });
            if let Err(reason) = taken {
                faults.push(fault(&file, None, &reason));
            }
        }
    }
    if faults.is_empty() { Ok(handlers) } else { Err(faults) }
}

/// The event types and schema versions that a file handles, from the stem of its name.
///
/// `OrderPlaced.v2` is schema version 2 of `OrderPlaced`. The name of an event type may itself end in a
/// version (`order.placed.v1`), so the file also handles the first schema version of that type.
fn handled(stem: &str) -> Vec<(&str, SchemaVersion)> {
    let mut handled = vec![(stem, SchemaVersion::FIRST)];
    if let Some((event_type, digits)) = stem.rsplit_once(".v")
        && let Some(version) =
            digits.parse().ok().and_then(|number| SchemaVersion::new(number).ok())
    {
        handled.push((event_type, version));
    }
    handled
}

/// Finds tables that two projections define. A shared table would receive each event twice, and a rebuild
/// of one projection would replace the rows of the other.
fn shared_tables(projections: &[Projection]) -> Vec<Fault> {
    let mut owners: HashMap<&str, &str> = HashMap::new();
    let mut faults = Vec::new();
    for projection in projections {
        for table in &projection.tables {
            if let Some(owner) = owners.insert(&table.name, &projection.name) {
                let reason = format!("projection {owner} already defines table {}", table.name);
                faults.push(fault(&table.create.file, Some(table.create.line), &reason));
            }
        }
    }
    faults
}

fn is_name(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !name.contains("__")
        && !name.ends_with('_')
}

pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, Fault> {
    let unreadable = |error: std::io::Error| fault(folder, None, &error.to_string());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if !file_name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

pub(crate) fn read(file: &Path) -> Result<String, Vec<Fault>> {
    std::fs::read_to_string(file).map_err(|error| vec![fault(file, None, &error.to_string())])
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn fault(file: &Path, line: Option<u64>, reason: &str) -> Fault {
    Fault { file: file.to_path_buf(), line, reason: reason.to_owned() }
}

fn line_of(text: &str, offset: usize) -> u64 {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() as u64 + 1
}
