-- projector: rows = 1
UPDATE account_balance SET balance = balance + :data.amount, postings = postings + 1
WHERE account_id = :stream_id;
