//! Splits SQL into tokens, each with its place in the text.

use std::any::TypeId;
use std::ops::Range;
use std::str::Chars;

use sqlparser::ast::Statement;
use sqlparser::dialect::{Dialect, MySqlDialect};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer, Whitespace};

/// A token with its place: a range of bytes, and a line and column counted from 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placed {
    pub(crate) token: Token,
    pub(crate) bytes: Range<usize>,
    pub(crate) line: u64,
    pub(crate) column: u64,
}

/// A parameter that is replaced by a column before the statement is parsed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marked {
    /// The index of its first token.
    pub(crate) token: usize,
    /// The number of its tokens.
    pub(crate) length: usize,
}

/// The SQL cannot be split into tokens, or contains a comment that MySQL executes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Untokenisable {
    pub(crate) line: u64,
    pub(crate) reason: String,
}

/// MySQL's dialect, except that `/*! … */` is a comment and not SQL. [`statements`] refuses such a comment.
#[derive(Debug)]
struct PlainMySql(MySqlDialect);

impl Dialect for PlainMySql {
    // The tokeniser compares the type of the dialect, for example for comments that begin with '#'.
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

/// Splits SQL into statements, and each statement into tokens, including white space and comments.
///
/// Empty statements are omitted.
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
                let reason = "MySQL executes this comment: remove it".to_owned();
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

/// An upper limit for the depth of the parsed statement.
pub(crate) fn nesting(tokens: &[Placed]) -> usize {
    // `here` counts since the last comma within the innermost open parenthesis; `outside` has the same
    // count for each enclosing level.
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

/// Parses one statement. String literals keep their escapes, and places are those of the file. A column named
/// `?0`, `?1`, … stands for each of the parameters.
///
/// # Errors
///
/// The line, the column and the reason why the statement is not batchable.
pub(crate) fn parsed(
    tokens: &[Placed],
    parameters: &[Marked],
) -> Result<Statement, (Location, String)> {
    let mut parameters = parameters.iter().enumerate().peekable();
    let mut located = Vec::new();
    let mut index = 0;
    while let Some(placed) = tokens.get(index) {
        let start = Location::new(placed.line, placed.column);
        let (token, length) = match parameters.next_if(|(_, marked)| marked.token == index) {
            Some((number, marked)) => {
                (Token::make_word(&format!("?{number}"), Some('`')), marked.length)
            }
            None => (placed.token.clone(), 1),
        };
        located.push(TokenWithSpan { token, span: Span::new(start, start) });
        index += length;
    }
    let mut parser = Parser::new(&MySqlDialect {}).with_tokens_with_locations(located);
    let statement = parser.parse_statement().ok();
    // The parser returns a statement even if it did not understand the rest of the text.
    let next = parser.peek_token_ref();
    let (ends, place) = (next.token == Token::EOF, next.span.start);
    statement.filter(|_| ends).ok_or_else(|| (place, "its syntax is not batchable".to_owned()))
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

    /// Whether the next token begins a new line.
    pub(crate) fn ends_line(&self) -> bool {
        matches!(
            self.token,
            Token::Whitespace(Whitespace::Newline | Whitespace::SingleLineComment { .. })
        )
    }

    /// Whether this token ends an expression.
    pub(crate) fn ends(&self) -> bool {
        matches!(self.token, Token::Comma | Token::RParen)
    }

    /// Whether the parser may nest deeper at this token, for example at an operator.
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

    /// The word in upper case, unless it is quoted.
    pub(crate) fn keyword(&self) -> Option<String> {
        match &self.token {
            Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_uppercase()),
            _ => None,
        }
    }

    /// The word as written, with or without backticks around it.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.token {
            Token::Word(word) => Some(&word.value),
            _ => None,
        }
    }
}

/// Converts the tokeniser's lines and columns to bytes.
///
/// It goes through the text once: searching from the start for each token would take quadratic time.
struct Places<'s> {
    rest: Chars<'s>,
    end: usize,
    here: Location,
}

impl<'s> Places<'s> {
    fn of(sql: &'s str) -> Self {
        Self { rest: sql.chars(), end: sql.len(), here: Location::new(1, 1) }
    }

    /// The byte at a location. Locations must be given in ascending order; columns count characters.
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
