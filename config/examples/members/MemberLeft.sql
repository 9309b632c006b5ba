-- projector: rows = 1
UPDATE members SET left_at = :occurred_at, email = NULL WHERE member_id = :stream_id;
