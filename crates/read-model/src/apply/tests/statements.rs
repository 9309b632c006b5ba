//! The statements from which the handlers of the tests are composed.

/// The statements from which handlers are composed.
pub(super) const STATEMENTS: &[&str] = &[
    "INSERT INTO loose (id, n) VALUES ('all', 1) ON DUPLICATE KEY UPDATE n = n + 1",
    "INSERT INTO items (id, n, note) VALUES (:data.key, 1, :data.text)",
    "INSERT INTO items (id, total, at) VALUES (:stream_id, :data.amount, :occurred_at)
     ON DUPLICATE KEY UPDATE total = total + :data.amount, at = :occurred_at",
    "INSERT INTO items (id, n) VALUES (:data.key, 1) ON DUPLICATE KEY UPDATE n = n + 1, note = :data.text",
    "INSERT INTO items (id, n, total) VALUES (:data.key, :data.number, :data.amount) AS new
     ON DUPLICATE KEY UPDATE n = items.n + new.n, total = items.total + new.total",
    "INSERT INTO items (id, total) VALUES (:data.key, :data.amount)
     ON DUPLICATE KEY UPDATE total = total + VALUES(total), n = n * 2 + 1",
    "INSERT INTO items (id, day, doc) VALUES (:data.key, :data.day?, :data.doc?)
     ON DUPLICATE KEY UPDATE day = :data.day?, doc = :data.doc?",
    "REPLACE INTO items (id, n, note, day) VALUES (:data.key, :stream_version, :data.text, :data.day?)",
    "UPDATE items SET total = total + :data.amount, n = n + 1 WHERE id = :data.key",
    "UPDATE items SET total = total - :data.amount, at = :occurred_at, note = :data.text WHERE id = :data.key",
    "UPDATE items SET n = n + :data.number, day = DATE(:occurred_at) WHERE id = :data.key",
    "UPDATE items SET n = :data.number, doc = :data.doc? WHERE id = :stream_id",
    "UPDATE items SET n = n + total, total = n WHERE id = :data.key",
    "UPDATE items SET note = :data.text WHERE id = :data.key AND n < :data.number",
    "UPDATE items SET at = GREATEST(COALESCE(at, :occurred_at), :occurred_at) WHERE id = :data.key",
    "UPDATE items SET note = NULL, n = n - 3 WHERE id = :data.key AND note IS NOT NULL",
    "UPDATE items SET n = n + 1 WHERE note = :data.text",
    "UPDATE items SET n = n + 1 WHERE at = :data.time?",
    "UPDATE items SET n = n + 1 WHERE n = :data.number",
    "DELETE FROM items WHERE id = :data.key",
    "DELETE FROM items WHERE id = :data.key AND total < :data.amount",
    "INSERT INTO loose (id, n, at) VALUES (:data.key, 1, :occurred_at) ON DUPLICATE KEY UPDATE n = n + 1, at = :occurred_at",
    "UPDATE loose SET n = n + :data.number WHERE id = :data.key",
    "DELETE FROM loose WHERE id = :data.key",
    "INSERT INTO loose (id, n) VALUES (LOWER(:data.key), :data.number)",
    "INSERT INTO padded (id, n) VALUES (:data.key, 5) ON DUPLICATE KEY UPDATE n = n + :data.number",
    "UPDATE padded SET n = n - 7, total = :data.amount WHERE id = :data.key",
    "UPDATE padded SET total = total + :data.amount WHERE id = :data.key",
    "INSERT INTO daily (day, currency, n, total) VALUES (DATE(:occurred_at), 'EUR', 1, :data.amount)
     ON DUPLICATE KEY UPDATE n = n + 1, total = total + :data.amount",
    "UPDATE daily SET total = total + :data.amount WHERE day = :data.day? AND currency = 'EUR'",
    "INSERT INTO daily (day, currency, n, total) VALUES (:data.day?, :data.key, 1, 0.5)
     ON DUPLICATE KEY UPDATE n = n + 1",
    "INSERT INTO log (event_id, stream, version) VALUES (UUID_TO_BIN(:event_id), :stream_id, :stream_version)",
    "INSERT INTO log (event_id, stream, version, amount) VALUES (UUID_TO_BIN(:event_id), :data.key, :data.number, :data.amount)",
    "UPDATE log SET amount = :data.amount WHERE stream = :stream_id AND version = :data.number",
    "-- projector: rows = 1
     UPDATE items SET n = n + 1 WHERE id = :data.key",
    // Expressions.
    "INSERT INTO items (id, n) VALUES (COALESCE(:data.text, '(none)'), 1) ON DUPLICATE KEY UPDATE n = n + 1",
    "INSERT INTO items (id, n, note) VALUES (:data.key, 1, :data.text) AS new
     ON DUPLICATE KEY UPDATE n = n + (NOT items.note <=> new.note), note = new.note",
    "INSERT INTO items (id, total) VALUES (:data.key, COALESCE(:data.amount, 0) * 2) AS new
     ON DUPLICATE KEY UPDATE total = items.total + new.total, n = n + (new.total > 20)",
    "UPDATE items SET n = n + (:event_type = 'A'), note = IF(:data.number > 3, 'many', 'few') WHERE id = :data.key",
    "UPDATE items SET note = CASE WHEN :data.amount > 10 THEN 'large' WHEN :data.amount IS NULL THEN NULL ELSE note END
     WHERE id = :data.key",
    "UPDATE items SET note = CASE :event_type WHEN 'A' THEN 'first' WHEN 'B' THEN COALESCE(:data.text, note) ELSE 'x' END,
            n = CASE n WHEN :data.number THEN 0 ELSE n + 1 END WHERE id = :stream_id",
    "UPDATE items SET note = NULLIF(:data.text, 'x'), total = total + IF(:data.text = 'x', :data.amount, 1)
     WHERE id = :data.key",
    "UPDATE items SET note = LEFT(REPLACE(COALESCE(:data.text, ''), ' ', '_'), 12), n = CHAR_LENGTH(:data.text) WHERE id = :data.key",
    "UPDATE items SET n = n + GREATEST(COALESCE(:data.number, 1), 0) WHERE id = :data.key",
    "UPDATE items SET n = n + COALESCE(:data.number, 1), total = ROUND(:data.amount * 3, 1) WHERE id = :data.key",
    "UPDATE items SET total = :data.number * :data.amount WHERE id = :data.key",
    "UPDATE items SET total = total + :data.number * :data.amount - COALESCE(:data.amount, 1) WHERE id = :data.key",
    "UPDATE items SET total = CAST(:data.amount AS DECIMAL(10, 1)), n = CAST(:data.number AS SIGNED) WHERE id = :data.key",
    "UPDATE items SET n = TIMESTAMPDIFF(HOUR, COALESCE(at, :occurred_at), :occurred_at), at = :occurred_at WHERE id = :data.key",
    "UPDATE items SET day = CAST(:data.day? AS DATE), n = DATEDIFF(:occurred_at, day) WHERE id = :data.key",
    "UPDATE items SET at = :occurred_at + INTERVAL n DAY, day = DATE(:data.time?) WHERE id = :data.key",
    "UPDATE items SET day = LAST_DAY(:data.day?), note = DATE_FORMAT(:occurred_at, '%Y-%m') WHERE id = :data.key",
    "UPDATE items SET n = n / 2, total = total / :data.number WHERE id = :data.key",
    "UPDATE items SET doc = JSON_SET(COALESCE(doc, '{}'), '$.text', :data.text, '$.n', :stream_version) WHERE id = :data.key",
    "UPDATE items SET doc = JSON_ARRAY_APPEND(COALESCE(doc, JSON_ARRAY()), '$', :data.text) WHERE id = :data.key",
    "UPDATE items SET note = doc->>'$.a[0]', n = JSON_LENGTH(:data.doc?) WHERE id = :data.key",
    "UPDATE items SET doc = JSON_OBJECT('k', :data.key, 'at', doc), note = JSON_UNQUOTE(JSON_EXTRACT(:data.doc?, '$.a[1]')) WHERE id = :data.key",
    "UPDATE items SET n = n + 1 WHERE id = :data.key AND (note IS NULL OR note = :data.text OR n IN (1, :data.number))",
    "UPDATE items SET n = n + 1 WHERE id = :data.key AND note <=> :data.text AND COALESCE(total, 0) >= :data.number",
    "UPDATE items SET n = n + (:data.text LIKE 'y%') + (note LIKE :data.text) WHERE id = :data.key",
    "UPDATE items SET n = n + (:data.text BETWEEN 'a' AND note) WHERE id = :data.key",
    "UPDATE items SET n = n + (:data.key = 'A') + (:data.key = id) + (COALESCE(:data.text, note) = :data.key) WHERE id = :data.key",
    "UPDATE items SET note = GREATEST(:data.key, COALESCE(note, '')), n = n + (:data.key < note) WHERE id = :data.key",
    "UPDATE items SET n = total, total = n * 2 WHERE id = :data.key",
    "UPDATE items SET total = n, n = :data.number WHERE id = :data.key",
    "UPDATE loose SET n = n + (:data.key = id) WHERE id = :data.key",
    "INSERT INTO loose SET id = CONCAT(:data.key, '-', :stream_version), n = :data.number",
    "INSERT IGNORE INTO items (id, n, note) VALUES (:data.key, :data.number, :data.text)",
    "INSERT IGNORE INTO log (event_id, stream, version) VALUES (UUID_TO_BIN(:event_id), :data.key, :data.number)",
    "INSERT INTO items (id, n) SELECT :data.key, COALESCE(:data.number, 7)",
    "UPDATE items SET total = total + :data.amount, n = IF(total > 10, n + 1, total) WHERE id = :data.key",
    "UPDATE items SET n = n - :data.number, total = n / 3, note = CONCAT(n, ':', :event_type) WHERE id = :data.key",
    "INSERT INTO log (event_id, stream, version, amount)
     VALUES (UUID_TO_BIN(:event_id), LOWER(:data.key), COALESCE(:data.number, 0), :data.amount)
     ON DUPLICATE KEY UPDATE version = version + 100",
    "INSERT INTO items (id, n) VALUES (IF(:data.amount > 5, :data.key, 'small'), 1)
     ON DUPLICATE KEY UPDATE n = n + IF(:data.flag, 1, 10)",
    "UPDATE items SET n = n + :data.flag, note = IF(:data.flag OR :data.number > 2, 'yes', CONCAT_WS('/', :data.text, :stream_version))
     WHERE id = :data.key",
    "UPDATE padded SET total = IF(total IS NULL OR :data.amount > total, :data.amount, total) WHERE id = :data.key",
    "DELETE FROM items WHERE id = :data.key AND (n > 3 OR :data.flag)",
    "UPDATE daily SET n = n + COALESCE(:data.number, 0) WHERE day = DATE(:occurred_at) AND currency = 'EUR'",
    "UPDATE daily SET n = n + 1, total = total + 0.1 * :data.amount WHERE day = :data.day? AND currency = :data.key",
    // Rows of other tables.
    "UPDATE items SET n = n + (SELECT COUNT(*) FROM log WHERE stream = :stream_id) WHERE id = :data.key",
    "UPDATE items SET note = COALESCE((SELECT currency FROM daily WHERE day = :data.day? AND currency = :data.key), :data.text)
     WHERE id = :data.key AND NOT EXISTS (SELECT 1 FROM padded WHERE id = :data.key AND padded.n > items.n)",
    "INSERT INTO loose (id, n) VALUES (:data.key, (SELECT COALESCE(MAX(i.n), :data.number) FROM items i WHERE i.id <> :data.key))
     ON DUPLICATE KEY UPDATE n = VALUES(n)",
    "INSERT INTO items (id, n, total)
     SELECT :data.key, COUNT(*), COALESCE(SUM(total), :data.amount) FROM daily WHERE day = DATE(:occurred_at)
     ON DUPLICATE KEY UPDATE total = VALUES(total), n = items.n + VALUES(n)",
    "INSERT INTO items (id, n)
     SELECT CONCAT(:data.key, i.line), i.value FROM JSON_TABLE(:data.list, '$[*]' COLUMNS (line FOR ORDINALITY, value INT PATH '$.n')) AS i
     WHERE i.value > COALESCE(:data.number, 0)
     ON DUPLICATE KEY UPDATE n = items.n * 2 + VALUES(n)",
    "INSERT INTO loose (id, n) SELECT CONCAT(l.stream, ':', :data.key, ':', l.version), l.version FROM log AS l WHERE l.stream = :stream_id",
    "INSERT INTO loose (id, n, at) SELECT :data.key, new_n.n, :occurred_at
     FROM JSON_TABLE(:data.list, '$[*]' COLUMNS (n INT PATH '$.n' ERROR ON EMPTY)) AS new_n ON DUPLICATE KEY UPDATE n = loose.n + 1, at = VALUES(at)",
    // Values for columns of any type.
    "INSERT INTO strange (id, doc) VALUES (:data.key, :data.any) ON DUPLICATE KEY UPDATE doc = :data.any",
    "INSERT INTO strange (id, at, stamp) VALUES (:data.key, :data.any, :data.any)
     ON DUPLICATE KEY UPDATE at = :data.any, stamp = :data.any",
    "INSERT INTO strange (id, at3) VALUES (:data.key, :data.any) ON DUPLICATE KEY UPDATE at3 = :data.any",
    "INSERT INTO strange (id, word) VALUES (:data.key, :data.any) ON DUPLICATE KEY UPDATE word = :data.any",
    "UPDATE strange SET day = :data.any, span = :data.span, code = :data.any WHERE id = :data.key",
    "UPDATE strange SET chosen = :data.any, at3 = NULLIF(:data.any, '') WHERE id = :data.key",
    "UPDATE strange SET stamp = :data.any, n = :data.any WHERE id = :data.key",
    "UPDATE strange SET n = n + :data.any, total = total + :data.any, stamp = :occurred_at WHERE id = :data.key",
    "UPDATE strange SET total = :data.any WHERE at = :data.any AND id = :data.key",
    "DELETE FROM strange WHERE word = :data.any AND id = :data.key",
];

/// Statements of one handler on one table.
pub(super) const PAIRS: &[&str] = &[
    "DELETE FROM items WHERE id = :data.key;
     INSERT INTO items (id, n, note) VALUES (:data.key, :data.number, :data.text)",
    "INSERT IGNORE INTO items (id) VALUES (:data.key);
     UPDATE items SET n = n + COALESCE(:data.number, 1), at = :occurred_at WHERE id = :data.key",
    "UPDATE items SET n = n - :data.number WHERE id = :data.key;
     UPDATE items SET n = n + :data.number, total = total + 1 WHERE id = :data.text",
    "UPDATE items SET note = :data.text WHERE id = :data.key;
     UPDATE items SET total = total + n WHERE id = :stream_id;
     DELETE FROM items WHERE id = :data.key AND n < 0",
    "INSERT INTO items (id, n) VALUES (:stream_id, 1) ON DUPLICATE KEY UPDATE n = n + 1;
     INSERT INTO items (id, n) VALUES (:data.key, 1) ON DUPLICATE KEY UPDATE n = n * 2",
    "UPDATE log SET amount = :data.amount WHERE stream = :stream_id AND version = :data.number;
     INSERT INTO log (event_id, stream, version) VALUES (UUID_TO_BIN(:event_id), :stream_id, :stream_version)",
    "UPDATE daily SET n = n + 1 WHERE day = :data.day? AND currency = 'EUR';
     INSERT INTO daily (day, currency, n, total) VALUES (:data.day?, :data.key, 1, :data.amount)
     ON DUPLICATE KEY UPDATE total = total + VALUES(total);
     INSERT INTO loose (id, n) VALUES (:data.key, 1) ON DUPLICATE KEY UPDATE n = n + 1",
    "INSERT INTO log (event_id, stream, version) VALUES (UUID_TO_BIN(:event_id), :stream_id, :stream_version);
     INSERT INTO items (id, n) VALUES (:stream_id, 1) ON DUPLICATE KEY UPDATE n = (SELECT SUM(version) FROM log WHERE stream = :stream_id)",
    "INSERT INTO items (id, n) VALUES (:data.key, 1) ON DUPLICATE KEY UPDATE n = n + 1;
     REPLACE INTO padded (id, n) SELECT :data.key, SUM(n) FROM items WHERE id = :data.key",
    "UPDATE items SET n = n + 1 WHERE id = :data.key;
     UPDATE padded SET n = n + (SELECT MAX(n) FROM items WHERE id = :data.text) WHERE id = :data.key",
];
