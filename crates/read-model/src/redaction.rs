//! Messages of MySQL without the values that they quote.

use crate::error_codes::{
    ER_BAD_FIELD_ERROR, ER_NO_SUCH_TABLE, ER_PARSE_ERROR, ER_WRONG_VALUE_COUNT_ON_ROW,
};

/// Removes values from a message of MySQL: they come from events, and must not reach a log. Names of
/// tables, columns and keys remain. So does no number of a row: MySQL counts the rows that a subquery reads too,
/// and an insert of one row can fail "at row 2".
pub(crate) fn without_values(number: u16, message: &str) -> String {
    let (text, has_row) = match message.rsplit_once(" at row ") {
        Some((text, row)) if row.bytes().all(|byte| byte.is_ascii_digit()) => (text, true),
        _ => (message, false),
    };
    // These messages quote the handler, not the event.
    let about_handler = matches!(
        number,
        ER_BAD_FIELD_ERROR | ER_PARSE_ERROR | ER_WRONG_VALUE_COUNT_ON_ROW | ER_NO_SUCH_TABLE
    );
    let Some((before, quoted)) = text.split_once('\'') else { return text.to_owned() };
    let names = ["column", "key", "constraint", "table", "field", "function"];
    let last_word = before.trim_end().rsplit(' ').next().unwrap_or_default().to_lowercase();
    let only_a_name = names.contains(&last_word.as_str()) && text.matches('\'').count() == 2;
    if about_handler || only_a_name {
        return text.to_owned();
    }
    // "Duplicate entry 'value' for key 'name'" and "… value: 'value' for column 'name' at row 1" end with a name.
    // Other messages end with the value, which may look like that.
    let ends_with_name = has_row || text.starts_with("Duplicate entry '");
    match quoted.rsplit_once("' for ") {
        Some((_value, name)) if ends_with_name => format!("{before}'…' for {name}"),
        _ => format!("{before}'…'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_contain_no_values_and_no_rows() {
        for (number, message, expected) in [
            (
                1062,
                "Duplicate entry 'alice@example.org' for key 'orders.PRIMARY'",
                "Duplicate entry '…' for key 'orders.PRIMARY'",
            ),
            (
                1062,
                "Duplicate entry 'it's' for key 'mine' for key 'orders.PRIMARY'",
                "Duplicate entry '…' for key 'orders.PRIMARY'",
            ),
            (
                1292,
                "Incorrect datetime value: '2026-13-01' for column 'paid_at' at row 1",
                "Incorrect datetime value: '…' for column 'paid_at'",
            ),
            (
                1366,
                "Incorrect integer value: 'a' for column 'canary' at row 1' for column 'n' at row 2",
                "Incorrect integer value: '…' for column 'n'",
            ),
            (
                1292,
                "Incorrect DATETIME value: 'a' for column 'canary' at row 1'",
                "Incorrect DATETIME value: '…'",
            ),
            (
                1292,
                "Truncated incorrect DOUBLE value: 'a'b'c'",
                "Truncated incorrect DOUBLE value: '…'",
            ),
            (
                1292,
                "Truncated incorrect DOUBLE value: 'canary' for column 'canary'",
                "Truncated incorrect DOUBLE value: '…'",
            ),
            (
                3140,
                "Invalid JSON text in argument 1: 'canary' for key 'canary' at position 2.",
                "Invalid JSON text in argument 1: '…'",
            ),
            (1048, "Column 'name' cannot be null", "Column 'name' cannot be null"),
            (1406, "Data too long for column 'name' at row 2", "Data too long for column 'name'"),
            (1054, "Unknown column 'nam' in 'field list'", "Unknown column 'nam' in 'field list'"),
            (1365, "Division by 0", "Division by 0"),
        ] {
            assert_eq!(without_values(number, message), expected);
        }
    }
}
