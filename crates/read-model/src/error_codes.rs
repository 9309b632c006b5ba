//! The MySQL error numbers that this crate distinguishes, by their names in the MySQL 8.4 Error Message
//! Reference.
//!
//! Names with `EE_` are global errors, below 1000; names with `ER_` are errors of the server.

pub(crate) const ER_DBACCESS_DENIED_ERROR: u16 = 1044;
pub(crate) const ER_ACCESS_DENIED_ERROR: u16 = 1045;
pub(crate) const ER_BAD_NULL_ERROR: u16 = 1048;
pub(crate) const ER_BAD_DB_ERROR: u16 = 1049;
pub(crate) const ER_TABLE_EXISTS_ERROR: u16 = 1050;
pub(crate) const ER_BAD_FIELD_ERROR: u16 = 1054;
pub(crate) const ER_DUP_FIELDNAME: u16 = 1060;
pub(crate) const ER_PARSE_ERROR: u16 = 1064;
pub(crate) const ER_WRONG_VALUE_COUNT_ON_ROW: u16 = 1136;
pub(crate) const ER_TABLEACCESS_DENIED_ERROR: u16 = 1142;
pub(crate) const ER_NO_SUCH_TABLE: u16 = 1146;
pub(crate) const ER_LOCK_WAIT_TIMEOUT: u16 = 1205;
pub(crate) const ER_LOCK_DEADLOCK: u16 = 1213;
pub(crate) const ER_QUERY_INTERRUPTED: u16 = 1317;
pub(crate) const ER_ACCESS_DENIED_NO_PASSWORD_ERROR: u16 = 1698;

/// Errors that neither a statement nor an event causes: locks, restarts, a read-only server, a full disk. A
/// retry can succeed.
const TRANSIENT: [(u16, &str); 41] = [
    (3, "EE_WRITE"),
    (20, "EE_DISK_FULL"),
    (1021, "ER_DISK_FULL"),
    (1026, "ER_ERROR_ON_WRITE"),
    (1028, "ER_FILSORT_ABORT"),
    (1037, "ER_OUTOFMEMORY"),
    (1040, "ER_CON_COUNT_ERROR"),
    (1041, "ER_OUT_OF_RESOURCES"),
    (1053, "ER_SERVER_SHUTDOWN"),
    (1077, "ER_NORMAL_SHUTDOWN"),
    (1078, "ER_GOT_SIGNAL"),
    (1079, "ER_SHUTDOWN_COMPLETE"),
    (1080, "ER_FORCING_CLOSE"),
    (1114, "ER_RECORD_FILE_FULL"),
    (1129, "ER_HOST_IS_BLOCKED"),
    (1152, "ER_ABORTING_CONNECTION"),
    (1158, "ER_NET_READ_ERROR"),
    (1159, "ER_NET_READ_INTERRUPTED"),
    (1160, "ER_NET_ERROR_ON_WRITE"),
    (1161, "ER_NET_WRITE_INTERRUPTED"),
    (1184, "ER_NEW_ABORTING_CONNECTION"),
    (1189, "ER_SOURCE_NET_READ"),
    (1190, "ER_SOURCE_NET_WRITE"),
    (1203, "ER_TOO_MANY_USER_CONNECTIONS"),
    (ER_LOCK_WAIT_TIMEOUT, "ER_LOCK_WAIT_TIMEOUT"),
    (1206, "ER_LOCK_TABLE_FULL"),
    (ER_LOCK_DEADLOCK, "ER_LOCK_DEADLOCK"),
    (1226, "ER_USER_LIMIT_REACHED"),
    (1290, "ER_OPTION_PREVENTS_STATEMENT"),
    (ER_QUERY_INTERRUPTED, "ER_QUERY_INTERRUPTED"),
    (1613, "ER_XA_RBTIMEOUT"),
    (1614, "ER_XA_RBDEADLOCK"),
    (1792, "ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION"),
    (1836, "ER_READ_ONLY_MODE"),
    (1878, "ER_TEMP_FILE_WRITE_FAILURE"),
    (3024, "ER_QUERY_TIMEOUT"),
    (3100, "ER_RUN_HOOK_ERROR"),
    (3101, "ER_TRANSACTION_ROLLBACK_DURING_COMMIT"),
    (3572, "ER_LOCK_NOWAIT"),
    (3675, "ER_DISK_FULL_NOWAIT"),
    (4031, "ER_CLIENT_INTERACTION_TIMEOUT"),
];

/// Whether a retry can succeed.
pub(crate) fn is_transient(number: u16) -> bool {
    TRANSIENT.iter().any(|(known, _)| *known == number)
}
