INSERT INTO daily_activity (day, event_type, events)
VALUES (DATE(:occurred_at), :event_type, 1)
ON DUPLICATE KEY UPDATE events = events + 1;
