//! SQL statements with named parameters.

use std::path::Path;
use std::sync::Arc;

use domain_events::StoredEvent;
use sqlparser::tokenizer::Token;

use crate::directive::{Directives, directives};
use crate::parameter::{Parameter, Source, Step};
use crate::refuse::{foreign_table, refusals, unknown_function, verb_after_with};
use crate::shape::{Action, LineColumn, NotBatchable, Shape, Touch, shape, touches};
use crate::tokens::{Marked, Placed, nesting, parsed, statements};
use crate::usage::{Use, uses};
use crate::{BindError, Fault, Value};

/// A statement that MySQL can prepare: placeholders replace its named parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Its number within the projection, from 0. For `CREATE TABLE`, always 0.
    pub id: usize,
    /// The SQL, with `?` for each parameter. Its line breaks are those of the file.
    pub sql: Arc<str>,
    /// The parameters in the order of their placeholders.
    pub parameters: Vec<Parameter>,
    /// The file that contains it.
    pub file: Arc<Path>,
    /// The line of its first token, from 1.
    pub line: u64,
    /// The column of its first token, from 1, in characters.
    pub column: u64,
    /// The number of rows that it must find, from its directive `rows`.
    pub rows: Option<u64>,
    /// Its effect, or the reason why it is not batchable.
    pub shape: Result<Shape, NotBatchable>,
    /// The use of each parameter; `None` if the statement could not be parsed.
    pub uses: Option<Vec<Use>>,
    /// The rows that it touches. The first element is those that it changes.
    pub touches: Vec<Touch>,
    /// The places of the parameters.
    pub places: Vec<LineColumn>,
}

/// The verbs of handlers. They change rows and nothing that commits or outlives the transaction.
const VERBS: [&str; 4] = ["INSERT", "UPDATE", "DELETE", "REPLACE"];

/// The greatest depth of a statement that is parsed. The recursive parser would exhaust the stack on a sum
/// of a thousand terms.
const NESTING_MAX: usize = 120;

impl Statement {
    /// The values of the parameters for an event.
    ///
    /// # Errors
    ///
    /// When the event lacks a required part, or has a value that MySQL cannot hold.
    pub fn bind(&self, event: &StoredEvent) -> Result<Vec<Value>, BindError> {
        self.parameters.iter().map(|parameter| parameter.value(event)).collect()
    }
}

/// Reads the statements of a handler. `own` lists the tables of its projection.
///
/// # Errors
///
/// Every mistake in the file.
pub(crate) fn handler(
    file: &Arc<Path>,
    sql: &str,
    own: &[&str],
) -> Result<Vec<Statement>, Vec<Fault>> {
    let found = split(file, sql)?;
    let mut faults = Vec::new();
    let mut handler = Vec::new();
    for tokens in found {
        let verb = tokens.iter().find(|placed| !placed.is_space());
        let line = verb.map_or(1, |placed| placed.line);
        let mut keyword = verb.and_then(Placed::keyword).unwrap_or_default();
        if keyword == "WITH" {
            keyword = verb_after_with(&tokens).unwrap_or_default();
        }
        if !VERBS.contains(&keyword.as_str()) {
            let reason = "a handler can only INSERT, UPDATE, DELETE or REPLACE: it runs in the \
                          transaction of its batch";
            faults.push(Fault {
                file: file.to_path_buf(),
                line: Some(line),
                reason: reason.into(),
            });
            continue;
        }
        match parse(file, sql, &tokens, line, own) {
            Ok(statement) => handler.push(statement),
            Err(found) => faults.extend(found),
        }
    }
    if handler.is_empty() && faults.is_empty() {
        let reason = "the file has no statement: remove it if the event changes nothing".to_owned();
        faults.push(Fault { file: file.to_path_buf(), line: None, reason });
    }
    if faults.is_empty() { Ok(handler) } else { Err(faults) }
}

/// Splits a file into statements of tokens.
pub(crate) fn split(file: &Arc<Path>, sql: &str) -> Result<Vec<Vec<Placed>>, Vec<Fault>> {
    statements(sql).map_err(|error| {
        let reason = error.reason;
        vec![Fault { file: file.to_path_buf(), line: Some(error.line), reason }]
    })
}

/// Parses a statement and checks it. `own` lists the tables that the statement may name; it is empty if
/// they are not known.
///
/// # Errors
///
/// Every mistake in the statement.
pub(crate) fn parse(
    file: &Arc<Path>,
    sql: &str,
    tokens: &[Placed],
    line: u64,
    own: &[&str],
) -> Result<Statement, Vec<Fault>> {
    let fault = |(line, reason)| Fault { file: file.to_path_buf(), line: Some(line), reason };
    let Substituted { text, marked, parameters, mistakes } = substitute(sql, tokens);
    let mut faults: Vec<Fault> = mistakes.into_iter().map(fault).collect();
    let Directives { rows, one_by_one } = directives(tokens).unwrap_or_else(|found| {
        faults.extend(found.into_iter().map(fault));
        Directives::default()
    });
    faults.extend(refusals(tokens).into_iter().map(fault));
    let column = tokens.iter().find(|placed| !placed.is_space()).map_or(1, |placed| placed.column);
    let place = LineColumn { line, column };
    let because = |reason: &str| NotBatchable { place, reason: reason.to_owned() };
    let parsed = if nesting(tokens) > NESTING_MAX {
        Err(because("one of its expressions is too long"))
    } else {
        parsed(tokens, &marked).map_err(|(location, reason)| match location.line {
            0 => because(&reason),
            line => NotBatchable { place: LineColumn { line, column: location.column }, reason },
        })
    };
    faults.extend(foreign_table(parsed.as_ref().ok(), tokens, own).map(|it| fault((line, it))));
    faults.extend(parsed.as_ref().ok().and_then(unknown_function).map(|it| fault((line, it))));
    if !faults.is_empty() {
        return Err(faults);
    }
    let uses = parsed.as_ref().ok().map(|parsed| uses(parsed, parameters.len()));
    let marks = tokens.iter().filter_map(Placed::name).any(|name| name.starts_with('?'));
    let touches = match &parsed {
        Ok(parsed) if !marks => touches(parsed, place),
        _ => Vec::new(),
    };
    let shape = if one_by_one {
        Err(because("it has the directive `one by one`"))
    } else if marks {
        Err(because("one of its names begins with ?, which marks parameters during parsing"))
    } else {
        parsed.and_then(|parsed| shape(&parsed, place))
    };
    let finds = |shape: &Shape| !matches!(shape.action, Action::Insert { .. });
    if rows.is_some() && shape.as_ref().is_ok_and(|shape| !finds(shape)) {
        let reason = "an INSERT finds no rows: use `rows` only with UPDATE and DELETE".to_owned();
        return Err(vec![fault((line, reason))]);
    }
    let file = Arc::clone(file);
    let place = |marked: &Marked| {
        let Placed { line, column, .. } = tokens[marked.token];
        LineColumn { line, column }
    };
    let places = marked.iter().map(place).collect();
    let sql = text.into();
    Ok(Statement { id: 0, sql, parameters, file, line, column, rows, shape, uses, touches, places })
}

/// A statement whose named parameters have been replaced.
#[derive(Default)]
struct Substituted {
    /// The SQL with `?` for each parameter, for MySQL.
    text: String,
    /// The parameters in the order of their placeholders.
    parameters: Vec<Parameter>,
    /// Their tokens.
    marked: Vec<Marked>,
    /// The mistakes, with their lines.
    mistakes: Vec<(u64, String)>,
}

/// Replaces the named parameters of a statement.
fn substitute(sql: &str, tokens: &[Placed]) -> Substituted {
    let mut done = Substituted::default();
    let (start, end) = extent(tokens);
    let mut copied = start;
    let mut index = 0;
    while let Some(placed) = tokens.get(index) {
        let mut mistake = |reason: String| done.mistakes.push((placed.line, reason));
        match &placed.token {
            Token::Placeholder(_) => {
                mistake("write a named parameter such as :stream_id, not ?".to_owned());
                index += 1;
            }
            Token::Assignment => {
                mistake("a user variable outlives the event: := is not allowed".to_owned());
                index += 1;
            }
            Token::Colon => match parameter(&tokens[index + 1..], placed.bytes.end) {
                Ok((parameter, length, end)) => {
                    done.text.push_str(&sql[copied..placed.bytes.start]);
                    done.text.push('?');
                    copied = end;
                    done.parameters.push(parameter);
                    done.marked.push(Marked { token: index, length: 1 + length });
                    index += 1 + length;
                }
                Err(reason) => {
                    mistake(reason);
                    // The rest of a wrong parameter would only cause a second mistake.
                    let rest = &tokens[index..];
                    let end = rest.iter().position(|placed| placed.is_space() || placed.ends());
                    index += end.unwrap_or(rest.len());
                }
            },
            _ => index += 1,
        }
    }
    done.text.push_str(&sql[copied..end]);
    done
}

/// The range of bytes from the first to the last token that is not white space.
fn extent(tokens: &[Placed]) -> (usize, usize) {
    let mut solid = tokens.iter().filter(|placed| !placed.is_space());
    let first = solid.next();
    let last = solid.next_back().or(first);
    (first.map_or(0, |placed| placed.bytes.start), last.map_or(0, |placed| placed.bytes.end))
}

/// Reads a parameter after its colon, such as `data.lines[0].price?`. Its parts must be adjacent; `end` is
/// the byte behind the colon.
///
/// Returns the parameter, the number of its tokens, and the byte behind it.
fn parameter(tokens: &[Placed], mut end: usize) -> Result<(Parameter, usize, usize), String> {
    let mut tokens = tokens.iter().take_while(|placed| {
        let adjacent = placed.bytes.start == end;
        end = placed.bytes.end;
        adjacent
    });
    let first = tokens.next().filter(|placed| placed.keyword().is_some());
    let (Some(root), Some(first)) = (first.and_then(Placed::name), first) else {
        return Err("expected a parameter name after the colon".to_owned());
    };
    let source = Source::named(root)?;
    let (mut path, mut optional) = (Vec::new(), false);
    let (mut length, mut end) = (1, first.bytes.end);
    let mut rest = tokens.peekable();
    while let Some(next) = rest.next() {
        let used = match &next.token {
            Token::Period => {
                let Some(field) = rest.next() else {
                    return Err(format!("expected a name after :{root}…."));
                };
                let Some(name) = field.name() else {
                    return Err(format!("expected a name after :{root}…."));
                };
                // Within backticks, a doubled backtick is a backtick of the name.
                path.push(Step::Field(name.replace("``", "`")));
                end = field.bytes.end;
                2
            }
            Token::LBracket => {
                let index = rest.next().and_then(|placed| match &placed.token {
                    Token::Number(digits, false) => digits.parse().ok(),
                    _ => None,
                });
                let closing = rest.next().filter(|placed| placed.token == Token::RBracket);
                let (Some(index), Some(closing)) = (index, closing) else {
                    return Err(format!("expected an index such as [0] after :{root}…"));
                };
                path.push(Step::Index(index));
                end = closing.bytes.end;
                3
            }
            Token::Placeholder(mark) if mark == "?" => {
                optional = true;
                end = next.bytes.end;
                length += 1;
                break;
            }
            _ => break,
        };
        length += used;
    }
    let parameter = Parameter::new(source, path, optional)?;
    Ok((parameter, length, end))
}
