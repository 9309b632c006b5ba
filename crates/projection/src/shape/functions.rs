//! The functions whose result depends only on their arguments, with the types of both.
//!
//! Between the two ways to run a statement, MySQL may convert a value from one type to another in different
//! ways: `'7' + n` adds a float, but `:data.n + n` with the text `7` adds an integer. So each function
//! states what it takes, and an expression that would need a conversion is not batchable.

/// The class of a value's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// NULL fits everywhere.
    Null,
    /// An integer or a condition.
    Integer,
    /// A number that may have a fraction. The number of its digits depends on the way of execution, but
    /// not its value.
    Number,
    /// A text with a collation.
    Text,
    /// A text that a JSON function returns, with a collation of its own.
    JsonText,
    /// A date or a time.
    Temporal,
    /// A JSON document.
    Json,
    /// Bytes.
    Binary,
    /// For arguments only: a text, or an integer that is printed.
    Printed,
    /// For arguments only: an integer, a text or a document that becomes a part of a document.
    Element,
    /// For arguments only: a unit of time.
    Unit,
    /// For arguments only: `INTERVAL … unit`
    Interval,
}

/// How the result of a function depends on its arguments.
#[derive(Debug, PartialEq, Eq)]
pub enum Rule {
    /// All arguments have the same class, and so has the result.
    Same,
    /// The same, except that the first argument is a condition: `IF`.
    If,
    /// The classes of the arguments, of which the last one repeats, and the class of the result.
    Fixed(&'static [Class], Class),
}

/// A function.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name, in upper case.
    pub name: &'static str,
    /// The types of its arguments and its result.
    pub rule: Rule,
    /// Whether it aggregates the rows of a subquery.
    pub aggregates: bool,
}

/// The function with this name, in upper case. `reads` says whether there are rows to aggregate.
pub(super) fn function(name: &str, reads: bool) -> Option<&'static Function> {
    let aggregates = AGGREGATES.iter().filter(|_| reads);
    FUNCTIONS.iter().chain(aggregates).find(|function| function.name == name)
}

static AGGREGATES: &[Function] = &[
    Function { name: "COUNT", rule: Rule::Fixed(&[Unit], Integer), aggregates: true },
    Function { name: "MAX", rule: Rule::Same, aggregates: true },
    Function { name: "MIN", rule: Rule::Same, aggregates: true },
    Function { name: "SUM", rule: Rule::Fixed(&[Number], Number), aggregates: true },
];

const fn same(name: &'static str) -> Function {
    Function { name, rule: Rule::Same, aggregates: false }
}

const fn fixed(name: &'static str, arguments: &'static [Class], result: Class) -> Function {
    Function { name, rule: Rule::Fixed(arguments, result), aggregates: false }
}

use Class::{Binary, Element, Integer, Json, JsonText, Number, Printed, Temporal, Text, Unit};

static FUNCTIONS: &[Function] = &[
    Function { name: "IF", rule: Rule::If, aggregates: false },
    same("COALESCE"),
    same("GREATEST"),
    same("IFNULL"),
    same("LEAST"),
    same("NULLIF"),
    // Numbers.
    same("ABS"),
    fixed("CEIL", &[Number], Number),
    fixed("CEILING", &[Number], Number),
    fixed("FLOOR", &[Number], Number),
    fixed("MOD", &[Integer], Integer),
    fixed("ROUND", &[Number, Integer], Number),
    fixed("SIGN", &[Number], Integer),
    fixed("TRUNCATE", &[Number, Integer], Number),
    // Texts.
    fixed("CHAR_LENGTH", &[Text], Integer),
    fixed("CHARACTER_LENGTH", &[Text], Integer),
    fixed("CONCAT", &[Printed], Text),
    fixed("CONCAT_WS", &[Printed], Text),
    fixed("FIND_IN_SET", &[Text], Integer),
    fixed("INSTR", &[Text], Integer),
    fixed("LEFT", &[Text, Integer], Text),
    fixed("LENGTH", &[Text], Integer),
    fixed("LOCATE", &[Text, Text, Integer], Integer),
    fixed("LOWER", &[Text], Text),
    fixed("LPAD", &[Printed, Integer, Text], Text),
    fixed("LTRIM", &[Text], Text),
    fixed("REPLACE", &[Text], Text),
    fixed("REVERSE", &[Text], Text),
    fixed("RIGHT", &[Text, Integer], Text),
    fixed("RPAD", &[Printed, Integer, Text], Text),
    fixed("RTRIM", &[Text], Text),
    fixed("SUBSTR", &[Text, Integer], Text),
    fixed("SUBSTRING", &[Text, Integer], Text),
    fixed("SUBSTRING_INDEX", &[Text, Text, Integer], Text),
    fixed("TRIM", &[Text], Text),
    fixed("UPPER", &[Text], Text),
    fixed("UUID_TO_BIN", &[Text, Integer], Binary),
    // Dates and times.
    fixed("DATE", &[Temporal], Temporal),
    fixed("DATE_ADD", &[Temporal, Class::Interval], Temporal),
    fixed("DATE_FORMAT", &[Temporal, Text], Text),
    fixed("DATE_SUB", &[Temporal, Class::Interval], Temporal),
    fixed("DATEDIFF", &[Temporal], Integer),
    fixed("DAY", &[Temporal], Integer),
    fixed("DAYOFMONTH", &[Temporal], Integer),
    fixed("DAYOFWEEK", &[Temporal], Integer),
    fixed("DAYOFYEAR", &[Temporal], Integer),
    fixed("HOUR", &[Temporal], Integer),
    fixed("LAST_DAY", &[Temporal], Temporal),
    fixed("MINUTE", &[Temporal], Integer),
    fixed("MONTH", &[Temporal], Integer),
    fixed("QUARTER", &[Temporal], Integer),
    fixed("SECOND", &[Temporal], Integer),
    fixed("TIMESTAMPDIFF", &[Unit, Temporal], Integer),
    fixed("TO_DAYS", &[Temporal], Integer),
    fixed("WEEK", &[Temporal, Integer], Integer),
    fixed("WEEKDAY", &[Temporal], Integer),
    fixed("YEAR", &[Temporal], Integer),
    fixed("YEARWEEK", &[Temporal, Integer], Integer),
    // JSON documents.
    fixed("JSON_ARRAY", &[Element], Json),
    fixed("JSON_ARRAY_APPEND", &[Json, Element], Json),
    fixed("JSON_CONTAINS", &[Json, Json, Text], Integer),
    fixed("JSON_EXTRACT", &[Json, Text], Json),
    fixed("JSON_INSERT", &[Json, Element], Json),
    fixed("JSON_LENGTH", &[Json, Text], Integer),
    fixed("JSON_MERGE_PATCH", &[Json], Json),
    fixed("JSON_MERGE_PRESERVE", &[Json], Json),
    fixed("JSON_OBJECT", &[Element], Json),
    fixed("JSON_QUOTE", &[Text], JsonText),
    fixed("JSON_REMOVE", &[Json, Text], Json),
    fixed("JSON_REPLACE", &[Json, Element], Json),
    fixed("JSON_SET", &[Json, Element], Json),
    fixed("JSON_TYPE", &[Json], JsonText),
    fixed("JSON_UNQUOTE", &[Json], JsonText),
];
