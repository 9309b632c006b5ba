INSERT INTO account_balance (account_id) VALUES (:stream_id);
