//! SQL as tokens, each with its place in the text.

use std::any::TypeId;
use std::ops::Range;
use std::str::Chars;

use sqlparser::ast::Statement;
use sqlparser::dialect::{Dialect, MySqlDialect};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Location, Token, Tokenizer, Whitespace};

/// A token and the bytes it stands at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placed {
    pub(crate) token: Token,
    pub(crate) bytes: Range<usize>,
    pub(crate) line: u64,
    pub(crate) column: u64,
}

/// SQL that is not even tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Untokenisable {
    pub(crate) line: u64,
    pub(crate) reason: String,
}

/// MySQL, but a comment is a comment: `/*! … */` is refused rather than read as SQL.
#[derive(Debug)]
struct PlainMySql(MySqlDialect);

impl Dialect for PlainMySql {
    // The tokeniser asks for the type too, for comments that begin with '#' for example.
    fn dialect(&self) -> TypeId {
        self.0.dialect()
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.0.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.0.is_identifier_part(ch)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.0.is_delimited_identifier_start(ch)
    }

    fn supports_string_literal_backslash_escape(&self) -> bool {
        true
    }

    fn supports_numeric_prefix(&self) -> bool {
        true
    }

    fn requires_single_line_comment_whitespace(&self) -> bool {
        true
    }
}

/// Splits SQL into statements of tokens, white space and comments included.
///
/// Empty statements are left out.
pub(crate) fn statements(sql: &str) -> Result<Vec<Vec<Placed>>, Untokenisable> {
    let dialect = PlainMySql(MySqlDialect {});
    let tokens = Tokenizer::new(&dialect, sql)
        .with_unescape(false)
        .tokenize_with_location()
        .map_err(|error| Untokenisable { line: error.location.line, reason: error.message })?;
    let mut places = Places::of(sql);
    let mut statements = vec![Vec::new()];
    for token in tokens {
        let (line, column) = (token.span.start.line, token.span.start.column);
        let bytes = places.offset(token.span.start)..places.offset(token.span.end);
        match token.token {
            Token::EOF => {}
            Token::SemiColon => statements.push(Vec::new()),
            Token::Whitespace(Whitespace::MultiLineComment(comment))
                if comment.starts_with(['!', '+']) || comment.starts_with("M!") =>
            {
                let reason = "a comment that MySQL executes is not allowed".to_owned();
                return Err(Untokenisable { line, reason });
            }
            token => {
                if let Some(statement) = statements.last_mut() {
                    statement.push(Placed { token, bytes, line, column });
                }
            }
        }
    }
    statements.retain(|statement| statement.iter().any(|placed| !placed.is_space()));
    Ok(statements)
}

/// How deep a statement is when it is parsed, at most.
pub(crate) fn nesting(tokens: &[Placed]) -> usize {
    // Since the last comma: within the innermost parenthesis, and outside each that is open.
    let (mut here, mut outside) = (0, Vec::new());
    let (mut depth, mut deepest) = (0, 0);
    for placed in tokens {
        match placed.token {
            Token::LParen => {
                outside.push(here);
                depth += 1;
                here = 1;
            }
            Token::RParen => {
                depth -= here;
                here = outside.pop().unwrap_or_default();
            }
            Token::Comma => {
                depth -= here;
                here = 0;
            }
            _ if placed.may_nest() => {
                depth += 1;
                here += 1;
            }
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Parses one statement; string literals keep their escapes.
pub(crate) fn parsed(sql: &str) -> Result<Statement, String> {
    let tokens = Tokenizer::new(&PlainMySql(MySqlDialect {}), sql)
        .with_unescape(false)
        .tokenize_with_location()
        .map_err(|error| error.message)?;
    let mut parser = Parser::new(&MySqlDialect {}).with_tokens_with_locations(tokens);
    let statement = parser.parse_statement().ok();
    // It stops before what it does not know.
    statement
        .filter(|_| parser.peek_token_ref().token == Token::EOF)
        .ok_or_else(|| "its syntax is not batchable".to_owned())
}

impl Placed {
    /// Whether this is white space or a comment.
    pub(crate) fn is_space(&self) -> bool {
        matches!(self.token, Token::Whitespace(_))
    }

    /// The text of a comment, trimmed.
    pub(crate) fn comment(&self) -> Option<&str> {
        match &self.token {
            Token::Whitespace(
                Whitespace::SingleLineComment { comment, .. }
                | Whitespace::MultiLineComment(comment),
            ) => Some(comment.trim()),
            _ => None,
        }
    }

    /// Whether what follows is on another line.
    pub(crate) fn ends_line(&self) -> bool {
        matches!(
            self.token,
            Token::Whitespace(Whitespace::Newline | Whitespace::SingleLineComment { .. })
        )
    }

    /// Whether this ends an expression.
    pub(crate) fn ends(&self) -> bool {
        matches!(self.token, Token::Comma | Token::RParen)
    }

    /// Whether what stands before this may become a part of what begins with it, as with operators.
    fn may_nest(&self) -> bool {
        match &self.token {
            Token::Word(word) => word.keyword != Keyword::NoKeyword,
            Token::Whitespace(_)
            | Token::Period
            | Token::Number(..)
            | Token::SingleQuotedString(_) => false,
            _ => true,
        }
    }

    /// The keyword or name, in upper case, unless it is quoted.
    pub(crate) fn keyword(&self) -> Option<String> {
        match &self.token {
            Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_uppercase()),
            _ => None,
        }
    }

    /// The name, quoted by backticks or not at all.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.token {
            Token::Word(word) => Some(&word.value),
            _ => None,
        }
    }
}

/// From the tokeniser's lines and columns to bytes.
///
/// Walks through the text once, because the tokens of a long line are many.
struct Places<'s> {
    rest: Chars<'s>,
    end: usize,
    here: Location,
}

impl<'s> Places<'s> {
    fn of(sql: &'s str) -> Self {
        Self { rest: sql.chars(), end: sql.len(), here: Location::new(1, 1) }
    }

    /// Lines and columns count from 1, columns in characters; no place is before that of the last call.
    fn offset(&mut self, location: Location) -> usize {
        while self.here < location {
            match self.rest.next() {
                Some('\n') => self.here = Location::new(self.here.line + 1, 1),
                Some(_) => self.here.column += 1,
                None => break,
            }
        }
        self.end - self.rest.as_str().len()
    }
}
