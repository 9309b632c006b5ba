INSERT INTO members (member_id, email) VALUES (:stream_id, :data.email?);
