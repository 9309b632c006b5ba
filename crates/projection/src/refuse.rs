//! Refuses statements that reach beyond the projection's own rows, or whose result differs when the read
//! model is rebuilt.

mod functions;

use std::convert::Infallible;
use std::ops::ControlFlow;

use sqlparser::ast::{Expr, ObjectName, ObjectNamePart, Query, Statement, Visit, Visitor};
use sqlparser::tokenizer::Token;

use crate::tokens::Placed;

/// Functions that read or change the session or the server.
const SESSION: [&str; 22] = [
    "BENCHMARK",
    "DATABASE",
    "FOUND_ROWS",
    "GET_LOCK",
    "ICU_VERSION",
    "IS_FREE_LOCK",
    "IS_USED_LOCK",
    "LAST_INSERT_ID",
    "LOAD_FILE",
    "MASTER_POS_WAIT",
    "PS_CURRENT_THREAD_ID",
    "PS_THREAD_ID",
    "RELEASE_ALL_LOCKS",
    "RELEASE_LOCK",
    "ROLES_GRAPHML",
    "ROW_COUNT",
    "SCHEMA",
    "SLEEP",
    "SOURCE_POS_WAIT",
    "VERSION",
    "WAIT_FOR_EXECUTED_GTID_SET",
    "WAIT_UNTIL_SQL_THREAD_AFTER_GTIDS",
];

/// Functions whose result differs from call to call.
const UNREPEATABLE: [&str; 23] = [
    "CONNECTION_ID",
    "CURDATE",
    "CURRENT_DATE",
    "CURRENT_ROLE",
    "CURRENT_TIME",
    "CURRENT_TIMESTAMP",
    "CURRENT_USER",
    "CURTIME",
    "LOCALTIME",
    "LOCALTIMESTAMP",
    "NOW",
    "RAND",
    "RANDOM_BYTES",
    "SESSION_USER",
    "SYSDATE",
    "SYSTEM_USER",
    "UNIX_TIMESTAMP",
    "USER",
    "UTC_DATE",
    "UTC_TIME",
    "UTC_TIMESTAMP",
    "UUID",
    "UUID_SHORT",
];

/// Prefixes of the functions that can be called without parentheses.
const BARE: [&str; 3] = ["CURRENT_", "LOCALTIME", "UTC_"];

/// Keywords before a name whose parenthesis lists columns. After any other word, the parenthesis contains
/// the arguments of a function.
const BEFORE_COLUMNS: [&str; 12] = [
    "AS",
    "CONSTRAINT",
    "EXISTS",
    "FULLTEXT",
    "IGNORE",
    "INDEX",
    "INSERT",
    "INTO",
    "KEY",
    "REFERENCES",
    "REPLACE",
    "TABLE",
];

/// Finds forbidden functions and variables, with their lines.
pub(crate) fn refusals(tokens: &[Placed]) -> Vec<(u64, String)> {
    let solid: Vec<&Placed> = tokens.iter().filter(|placed| !placed.is_space()).collect();
    let mut faults = Vec::new();
    for (index, placed) in solid.iter().enumerate() {
        let next = |offset: usize| solid.get(index + offset).map(|placed| &placed.token);
        let before = index.checked_sub(1).map(|before| solid[before]);
        let bare = placed.keyword().unwrap_or_default();
        // MySQL also calls a function whose name is in backticks.
        let word = placed.name().unwrap_or_default().to_uppercase();
        let names = before.and_then(Placed::keyword);
        let called = next(1) == Some(&Token::LParen)
            && !names.as_deref().is_some_and(|before| BEFORE_COLUMNS.contains(&before));
        let before_period = before.is_some_and(|before| before.token == Token::Period);
        // `statement::parse` already refuses assignments.
        let assigned = next(1) == Some(&Token::Assignment) || next(2) == Some(&Token::Assignment);
        if assigned {
            continue;
        }
        let mut fault = |reason: String| faults.push((placed.line, reason));
        // `INTO other.t (column)` is told as a table of another database.
        let qualifies_table = index
            .checked_sub(3)
            .and_then(|before| solid[before].keyword())
            .is_some_and(|before| BEFORE_COLUMNS.contains(&&*before));
        if before_period && called && !qualifies_table {
            fault(format!("{word}() is a stored function: only functions of MySQL are allowed"));
        } else if bare == "TABLE" && !(index == 1 && names.as_deref() == Some("CREATE")) {
            fault("TABLE as a query is not allowed: write SELECT * FROM the table".to_owned());
        } else if bare == "REFERENCES" && next(2) == Some(&Token::Period) {
            fault("a foreign key can only refer to a table of this projection".to_owned());
        } else if bare.starts_with('@') || matches!(placed.token, Token::AtSign | Token::AtAt) {
            fault("a session variable outlives the event and is not allowed".to_owned());
        } else if bare == "AUTO_INCREMENT" {
            fault(
                "AUTO_INCREMENT changes with every rebuild of the read model: use a key from the event"
                    .to_owned(),
            );
        } else if SESSION.contains(&&*word) && called {
            fault(format!("{word}() reaches beyond the transaction and is not allowed"));
        } else if UNREPEATABLE.contains(&&*word)
            && !before_period
            && (called || BARE.iter().any(|start| bare.starts_with(start)))
        {
            fault(format!(
                "{word} changes with every rebuild of the read model: use :occurred_at, :recorded_at or \
                 :event_id"
            ));
        }
    }
    faults
}

/// The reason to refuse a statement that names tables of others, or `None`. `own` lists the tables of the
/// projection; it is empty if they are unknown, and then only other databases are refused.
///
/// For a statement that could not be parsed, the words before each name decide.
pub(crate) fn foreign_table(
    parsed: Option<&Statement>,
    tokens: &[Placed],
    own: &[&str],
) -> Option<String> {
    let is_own = |name: &str| own.iter().any(|table| table.eq_ignore_ascii_case(name));
    let qualified = |name: &str| {
        format!("{name} is in another database: a projection reads and changes only its own tables")
    };
    let unknown = |name: &str| {
        format!(
            "{name} is not a table of this projection: it reads and changes only its own tables"
        )
    };
    let Some(parsed) = parsed else {
        return foreign_words(tokens, is_own, !own.is_empty()).map(|found| match found {
            Foreign::Qualified(name) => qualified(&name),
            Foreign::Unknown(name) => unknown(&name),
        });
    };
    let mut relations = Relations::default();
    let ControlFlow::Continue(()) = parsed.visit(&mut relations);
    relations.named.iter().find_map(|name| match &name.0[..] {
        [ObjectNamePart::Identifier(one)] => {
            let is_cte = relations.ctes.iter().any(|cte| cte.eq_ignore_ascii_case(&one.value));
            let known = own.is_empty() || is_own(&one.value) || is_no_table(&one.value) || is_cte;
            (!known).then(|| unknown(&one.value))
        }
        _ => Some(qualified(&name.to_string())),
    })
}

/// The reason to refuse a statement that calls a function which is not known to be allowed, or `None`.
pub(crate) fn unknown_function(parsed: &Statement) -> Option<String> {
    let mut functions = Functions::default();
    let ControlFlow::Continue(()) = parsed.visit(&mut functions);
    // `refusals` has better reasons for these.
    let told = |name: &str| {
        SESSION.iter().chain(&UNREPEATABLE).any(|known| known.eq_ignore_ascii_case(name))
    };
    let unknown = functions.0.iter().find(|name| !functions::is_known(name) && !told(name))?;
    Some(format!(
        "{unknown}() is not known to give the same result whenever the read model is rebuilt, or is a stored \
         function: only functions of MySQL that depend on their arguments alone are allowed"
    ))
}

/// The functions that a statement calls by an unqualified name.
#[derive(Default)]
struct Functions(Vec<String>);

impl Visitor for Functions {
    type Break = Infallible;

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Infallible> {
        if let Expr::Function(function) = expr
            && let [ObjectNamePart::Identifier(name)] = &function.name.0[..]
        {
            self.0.push(name.value.clone());
        }
        ControlFlow::Continue(())
    }
}

/// Names that can stand in the place of a table.
fn is_no_table(name: &str) -> bool {
    ["DUAL", "JSON_TABLE", "LATERAL"].iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The tables that a statement names.
#[derive(Default)]
struct Relations {
    named: Vec<ObjectName>,
    /// Its common table expressions.
    ctes: Vec<String>,
}

impl Visitor for Relations {
    type Break = Infallible;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Infallible> {
        let with = query.with.iter().flat_map(|with| &with.cte_tables);
        self.ctes.extend(with.map(|table| table.alias.name.value.clone()));
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<Infallible> {
        self.named.push(name.clone());
        ControlFlow::Continue(())
    }
}

enum Foreign {
    Qualified(String),
    Unknown(String),
}

/// Finds the first table that is not the projection's own, from the words around each name.
fn foreign_words(
    tokens: &[Placed],
    is_own: impl Fn(&str) -> bool,
    known_all: bool,
) -> Option<Foreign> {
    let solid: Vec<&Placed> = tokens.iter().filter(|placed| !placed.is_space()).collect();
    let before = |index: usize| index.checked_sub(1).map(|before| solid[before]);
    let keyword = |index: usize| before(index).and_then(Placed::keyword).unwrap_or_default();
    // An alias stands behind AS, a parenthesis or a table.
    let aliases: Vec<&str> = (0..solid.len())
        .filter(|index| {
            let behind = before(*index);
            keyword(*index) == "AS"
                || behind.is_some_and(|it| it.token == Token::RParen)
                || behind.and_then(Placed::name).is_some_and(&is_own)
        })
        // `WITH name AS (…)`
        .chain(
            (1..solid.len()).filter(|index| *index > 1 && keyword(*index) == "AS").map(|it| it - 2),
        )
        .filter_map(|index| solid[index].name())
        .collect();
    let known = |name: &str| is_own(name) || is_no_table(name) || aliases.contains(&name);
    // The word before each open parenthesis.
    let mut open = Vec::new();
    for (index, placed) in solid.iter().enumerate() {
        match placed.token {
            Token::LParen => open.push(keyword(index)),
            Token::RParen => drop(open.pop()),
            _ => {}
        }
        let Some(name) = placed.name() else { continue };
        let follows = |token: &Token| before(index).is_some_and(|it| it.token == *token);
        if follows(&Token::Period) || follows(&Token::Colon) {
            continue;
        }
        let period = solid.get(index + 1).is_some_and(|next| next.token == Token::Period);
        if period && !known(name) {
            let rest = solid.get(index + 2).and_then(|it| it.name()).unwrap_or_default();
            return Some(Foreign::Qualified(format!("{name}.{rest}")));
        }
        // FROM names no table in EXTRACT(YEAR FROM column).
        let argument = ["EXTRACT", "MID", "SUBSTR", "SUBSTRING", "TRIM"];
        let argument = open.last().is_some_and(|word| argument.contains(&&**word));
        let place = match &*keyword(index) {
            "FROM" => !argument,
            "INTO" | "JOIN" | "STRAIGHT_JOIN" => true,
            "UPDATE" => index == 1,
            _ => false,
        };
        let word = placed.keyword().unwrap_or_default();
        if known_all && place && !known(name) && !["IGNORE", "LOW_PRIORITY"].contains(&&*word) {
            return Some(Foreign::Unknown(name.to_owned()));
        }
    }
    None
}

/// The verb of a statement that begins with WITH.
pub(crate) fn verb_after_with(tokens: &[Placed]) -> Option<String> {
    let mut depth = 0_usize;
    tokens.iter().filter(|placed| !placed.is_space()).find_map(|placed| {
        match placed.token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            _ => {}
        }
        let verbs = ["DELETE", "INSERT", "REPLACE", "SELECT", "TABLE", "UPDATE", "VALUES"];
        placed.keyword().filter(|word| depth == 0 && verbs.contains(&&**word))
    })
}
